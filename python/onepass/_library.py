"""libonepass_attention through ctypes: the structs of onepass/attention.h, the functions, their errors. Knows no torch."""

import ctypes
import os
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path

ENVIRONMENT = "ONEPASS_ATTENTION_LIBRARY"
VERSION = 1

OK, INVALID_ARGUMENT, UNSUPPORTED = 0, 1, 2
FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
LAUNCH = [c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_char_p, c_size_t]


def _fields(text: str) -> list:
    """ "q:p q_row_stride:l" -> [("q", c_void_p), ("q_row_stride", c_int64)]"""
    kinds = {"p": c_void_p, "l": c_int64, "i": c_int32, "f": c_float, "z": c_size_t}
    return [(name, kinds[kind]) for name, kind in (word.split(":") for word in text.split())]


class Struct(ctypes.Structure):
    def __init__(self):
        super().__init__()
        self.struct_size = ctypes.sizeof(self)


class AttentionParams(Struct):
    _fields_ = _fields(
        "struct_size:z q:p q_row_stride:l q_head_stride:l k:p v:p k_page_stride:l k_row_stride:l k_head_stride:l "
        "v_page_stride:l v_row_stride:l v_head_stride:l total_kv_rows:l out:p out_row_stride:l out_head_stride:l "
        "softmax_lse:p q_dtype:i kv_dtype:i out_dtype:i batch:i total_q:i max_seqlen_q:i num_heads:i num_heads_kv:i "
        "head_dim:i head_dim_v:i cu_seqlens_q:p cache_seqlens:p cu_seqlens_k:p page_table:p page_table_stride:l "
        "page_size:i causal:i window_left:i window_right:i attention_chunk:i softmax_scale:f softcap:f num_splits:i "
        "sinks:p split_size:i batch_invariant:i"
    )

    def __init__(self):
        super().__init__()
        self.softmax_scale = 1.0
        self.window_left = self.window_right = -1


class PartStack(ctypes.Structure):
    _fields_ = _fields(
        "out:p part_stride:l row_stride:l head_stride:l lse:p lse_part_stride:l lse_head_stride:l count:i dtype:i"
    )


class MergeParams(Struct):
    _fields_ = [
        ("struct_size", c_size_t),
        ("stacks", POINTER(PartStack)),
        *_fields(
            "num_stacks:i out_dtype:i out:p out_row_stride:l out_head_stride:l softmax_lse:p lse_head_stride:l rows:l "
            "num_heads:i head_dim_v:i"
        ),
    ]


class AppendKvParams(Struct):
    _fields_ = _fields(
        "struct_size:z dtype:i batch:i num_heads:i num_heads_kv:i head_dim:i head_dim_v:i cache_seqlens:p "
        "cu_seqlens_k:p cache_leftpad:p cache_batch_idx:p seqlen_k:i entry_rows:i seqlens_k_out:p begins_out:p k_new:p "
        "v_new:p k_new_batch_stride:l k_new_row_stride:l k_new_head_stride:l v_new_batch_stride:l v_new_row_stride:l "
        "v_new_head_stride:l cu_seqlens_new:p seqlen_new:i total_new:i k_cache:p v_cache:p k_page_stride:l "
        "k_row_stride:l k_head_stride:l v_page_stride:l v_row_stride:l v_head_stride:l page_table:p "
        "page_table_stride:l page_size:i pages_per_request:i rotary_cos:p rotary_sin:p rotary_seqlens:p rotary_rows:i "
        "rotary_dim:i rotary_interleaved:i rotate_queries_by_row:i q:p q_out:p q_batch_stride:l q_row_stride:l "
        "q_head_stride:l cu_seqlens_q:p seqlen_q:i total_q:i"
    )


def shared_library_path() -> Path:
    """The file that ONEPASS_ATTENTION_LIBRARY names, else the one beside this module."""
    named = os.environ.get(ENVIRONMENT)
    path = Path(named) if named else Path(__file__).parent / "libonepass_attention.so"
    if not path.is_file():
        hint = f"which {ENVIRONMENT} names" if named else f"and {ENVIRONMENT} names no other"
        raise ImportError(f"onepass: there is no {path}, {hint}")
    return path


class Library:
    """The functions raise ValueError for a wrong argument, NotImplementedError for what no kernel serves, RuntimeError for
    what CUDA or its absence causes. Calls hold the interpreter's lock: they only queue work."""

    def __init__(self, path: Path):
        self._lib = ctypes.PyDLL(str(path))
        self._lib.onepass_attention_version.restype = c_int32
        if self._lib.onepass_attention_version() != VERSION:
            raise ImportError(
                f"onepass: {path}: expected version {VERSION} of the C interface, found "
                f"{self._lib.onepass_attention_version()}"
            )
        self._message = ctypes.create_string_buffer(1024)
        tail = [c_char_p, c_size_t]
        self.device_open = self._function("device_open", [c_int32, POINTER(c_void_p), *tail])
        self.attention_choose = self._function(
            "attention_choose", [c_void_p, c_void_p, c_char_p, POINTER(c_void_p), *tail]
        )
        self.attention_scratch_bytes = self._function(
            "attention_scratch_bytes", [c_void_p, c_void_p, c_void_p, POINTER(c_int64), *tail]
        )
        self.attention_plan = self._function("attention_plan", LAUNCH)
        self.attention_run = self._function("attention_run", LAUNCH)
        self.attention_plan_and_run = self._function("attention_plan_and_run", LAUNCH)
        self.attention_merge = self._function("attention_merge", [c_void_p, c_void_p, c_void_p, *tail])
        self.append_kv = self._function("append_kv", [c_void_p, c_void_p, c_void_p, *tail])
        self.stream_capture_id = self._function("stream_capture_id", [c_void_p, POINTER(c_uint64), *tail])
        self._lib.onepass_attention_kernel_name.restype = c_char_p
        self._lib.onepass_attention_kernel_name.argtypes = [c_void_p]

    def _function(self, name: str, argtypes: list):
        function = getattr(self._lib, "onepass_" + name)
        function.argtypes, function.restype = argtypes, c_int32
        message, size, fail = self._message, len(self._message), self._fail
        if argtypes == LAUNCH:  # every call's: spelled out it takes less time

            def launch(device, kernel, params, scratch, scratch_bytes, stream) -> None:
                status = function(device, kernel, params, scratch, scratch_bytes, stream, message, size)
                if status != OK:
                    fail(status)

            return launch

        def call(*arguments) -> None:
            status = function(*arguments, message, size)
            if status != OK:
                fail(status)

        return call

    def _fail(self, status: int) -> None:
        kinds = {INVALID_ARGUMENT: ValueError, UNSUPPORTED: NotImplementedError}
        raise kinds.get(status, RuntimeError)(self._message.value.decode(errors="replace"))

    def kernel_name(self, kernel: c_void_p) -> str:
        return self._lib.onepass_attention_kernel_name(kernel).decode()
