"""onepass's attention kernels on torch's tensors, in torch's process, as onepass bench attention calls them: one plan stands before
all runs. By the C interface, onepass/attention.h, through python/onepass; for attention_peers_cuda.py.
"""

import ctypes
import os
import pathlib
import sys

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent


def load(library: pathlib.Path) -> None:
    """Makes the package use this libonepass_attention.so. OSError or AttributeError if it is another file."""
    sys.path.insert(0, str(ROOT / "python"))
    os.environ["ONEPASS_ATTENTION_LIBRARY"] = str(library.resolve())
    from onepass import _device

    _device.native()


class Kernel:
    """The kernel called `name` ("auto": the best) for a shape; its calls go round the copies of the inputs."""

    def __init__(self, shape: dict, inputs, name: str):
        from onepass import _device, _library  # load() has said which library

        self._library, self._gpu = _device.native(), _device.gpu(torch.cuda.current_device())
        self._raw_stream = _device.raw_stream
        self._inputs = inputs
        total_q = shape["batch"] * shape["seqlen_q"]
        self._shape = (shape["batch"], shape["seqlen_q"], shape["num_heads"], shape["head_dim_v"])
        self._lse = torch.empty((shape["num_heads"], total_q), device="cuda")
        dtype = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}[inputs.dtype]
        self._params = []
        for q, k, v in inputs.copies:
            out = torch.empty(self._shape, device="cuda", dtype=inputs.dtype)
            p = _library.AttentionParams()
            p.q, p.q_row_stride, p.q_head_stride = q.data_ptr(), q.stride(1), q.stride(2)
            p.k, p.k_row_stride, p.k_head_stride = k.data_ptr(), k.stride(1), k.stride(2)
            p.v, p.v_row_stride, p.v_head_stride = v.data_ptr(), v.stride(1), v.stride(2)
            p.out, p.out_row_stride, p.out_head_stride = out.data_ptr(), out.stride(1), out.stride(2)
            p.softmax_lse = self._lse.data_ptr()
            p.q_dtype = p.kv_dtype = p.out_dtype = dtype
            p.batch, p.total_q, p.max_seqlen_q = shape["batch"], total_q, shape["seqlen_q"]
            p.num_heads, p.num_heads_kv = shape["num_heads"], shape["num_heads_kv"]
            p.head_dim, p.head_dim_v = shape["head_dim"], shape["head_dim_v"]
            p.total_kv_rows = k.shape[0] * k.shape[1]
            p.cu_seqlens_q, p.cache_seqlens = inputs.cu_seqlens_q.data_ptr(), inputs.lengths.data_ptr()
            if shape["page_size"] > 0:
                p.page_size, p.page_table = shape["page_size"], inputs.page_table.data_ptr()
                p.page_table_stride = inputs.page_table.shape[1]
                p.k_page_stride = p.k_row_stride * shape["page_size"]
                p.v_page_stride = p.v_row_stride * shape["page_size"]
            else:
                p.cu_seqlens_k = inputs.cu_seqlens_k.data_ptr()
            p.causal, p.softmax_scale = int(shape["causal"]), shape["head_dim"] ** -0.5
            self._params.append((p, out))
        kernel, size = ctypes.c_void_p(), ctypes.c_int64()
        first = ctypes.byref(self._params[0][0])
        self._library.attention_choose(self._gpu.handle, first, name.encode(), ctypes.byref(kernel))
        self._library.attention_scratch_bytes(self._gpu.handle, kernel, first, ctypes.byref(size))
        self._kernel, self._bytes = kernel, size.value
        self._scratch = torch.zeros(max(1, size.value), device="cuda", dtype=torch.uint8)
        self.name = self._library.kernel_name(kernel)
        self._queue(self._library.attention_plan, self._params[0][0])
        torch.cuda.synchronize()

    def _queue(self, function, params) -> None:
        stream = self._raw_stream(torch.cuda.current_device())
        scratch = self._scratch.data_ptr()
        function(self._gpu.handle, self._kernel, ctypes.byref(params), scratch, self._bytes, stream)

    def _run(self, params, out: torch.Tensor) -> torch.Tensor:
        self._queue(self._library.attention_run, params)
        return out

    def calls(self) -> list:
        return [lambda p=p, out=out: self._run(p, out) for p, out in self._params]
