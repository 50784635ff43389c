"""A stand-in for libonepass_attention on the CPU: the same structs, computed slowly over the same memory. With it the Python
layer (checks, layouts, strides, lengths) is tested where there is no GPU; it says nothing about the kernels."""

import ctypes

import reference
import torch
from onepass import _checks, _device, _library

TYPES = {_library.FLOAT32: torch.float32, _library.FLOAT16: torch.float16, _library.BFLOAT16: torch.bfloat16}


def view(address: int, dtype: torch.dtype, shape: tuple, strides: tuple) -> torch.Tensor:
    size = torch.empty(0, dtype=dtype).element_size()
    count = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * (count * size)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)


def ints(address: int | None, count: int) -> list | None:
    return view(address, torch.int32, (count,), (1,)).tolist() if address else None


class FakeLibrary:
    plans = 0

    def device_open(self, index, handle):
        handle._obj.value = 1

    def attention_choose(self, device, params, name, kernel):
        p = params._obj
        if p.head_dim > 512:
            raise NotImplementedError(f"attention: head_dim: expected 1 to 512, found {p.head_dim}")
        kernel._obj.value = 1

    def attention_scratch_bytes(self, device, kernel, params, size):
        size._obj.value = 4096

    def attention_plan(self, device, kernel, params, scratch, scratch_bytes, stream):
        self.plans += 1

    def attention_plan_and_run(self, *arguments):
        self.attention_plan(*arguments)
        self.attention_run(*arguments)

    def attention_run(self, device, kernel, params, scratch, scratch_bytes, stream):
        p = params._obj
        dtype = TYPES[p.q_dtype]
        q = view(p.q, dtype, (p.total_q, p.num_heads, p.head_dim), (p.q_row_stride, p.q_head_stride, 1))
        out = view(p.out, dtype, (p.total_q, p.num_heads, p.head_dim_v), (p.out_row_stride, p.out_head_stride, 1))
        lse = None
        if p.softmax_lse:
            lse = view(p.softmax_lse, torch.float32, (p.num_heads, p.total_q), (p.total_q, 1))
        cu, lengths = ints(p.cu_seqlens_q, p.batch + 1), ints(p.cache_seqlens, p.batch)
        for b in range(p.batch):
            rows, length = slice(cu[b], cu[b + 1]), lengths[b]
            k = self._keys(p, b, length, dtype, p.k, p.k_page_stride, p.k_row_stride, p.k_head_stride, p.head_dim)
            v = self._keys(p, b, length, dtype, p.v, p.v_page_stride, p.v_row_stride, p.v_head_stride, p.head_dim_v)
            result, logs = reference.attention(
                q[rows].double(),
                k.double(),
                v.double(),
                scale=p.softmax_scale,
                causal=bool(p.causal),
                window=(p.window_left, p.window_right),
                chunk=p.attention_chunk,
                softcap=p.softcap,
            )
            out[rows] = result.to(dtype)
            if lse is not None:
                lse[:, rows] = logs.float()

    def _keys(self, p, b, length, dtype, address, page_stride, row_stride, head_stride, dim):
        if length == 0:
            return torch.zeros((0, p.num_heads_kv, dim), dtype=dtype)
        size = torch.empty(0, dtype=dtype).element_size()
        shape, strides = (1, p.num_heads_kv, dim), (row_stride, head_stride, 1)
        rows = []
        if not p.page_table:
            begin = ints(p.cu_seqlens_k, b + 1)[b]
            return view(address + begin * row_stride * size, dtype, (length, *shape[1:]), strides)
        pages = ints(p.page_table + 4 * b * p.page_table_stride, -(-length // p.page_size))
        for j in range(length):
            at = pages[j // p.page_size] * page_stride + j % p.page_size * row_stride
            rows.append(view(address + at * size, dtype, shape, strides))
        return torch.cat(rows)

    def attention_merge(self, device, params, stream):
        p = params._obj
        s, d = p.stacks[0], p.head_dim_v
        shape = (s.count, p.rows, p.num_heads, d)
        out = view(s.out, TYPES[s.dtype], shape, (s.part_stride, s.row_stride, s.head_stride, 1)).double()
        logs = view(s.lse, torch.float32, (s.count, p.num_heads, p.rows), (s.lse_part_stride, s.lse_head_stride, 1))
        logs = logs.transpose(1, 2).double()
        lse = torch.logsumexp(logs, dim=0)
        weights = torch.exp(logs - lse).nan_to_num(0.0)[..., None]
        merged = torch.where(weights > 0, out * weights, torch.zeros_like(out)).sum(0)
        view(p.out, TYPES[p.out_dtype], shape[1:], (p.out_row_stride, p.out_head_stride, 1)).copy_(merged)
        view(p.softmax_lse, torch.float32, (p.num_heads, p.rows), (p.lse_head_stride, 1)).copy_(lse.T)

    def append_kv(self, device, params, stream):
        p = params._obj
        held = ints(p.cache_seqlens, p.batch)
        cu = ints(p.cu_seqlens_k, p.batch + 1)
        if held is None:
            held = [cu[b + 1] - cu[b] for b in range(p.batch)] if cu else [p.seqlen_k] * p.batch
        pad = ints(p.cache_leftpad, p.batch) or [0] * p.batch
        entry = ints(p.cache_batch_idx, p.batch) or list(range(p.batch))
        new = ints(p.cu_seqlens_new, p.batch + 1) or [b * p.seqlen_new for b in range(p.batch + 1)]
        capacity = p.page_size * p.pages_per_request if p.page_table else p.page_size
        if p.seqlens_k_out:
            lengths = view(p.seqlens_k_out, torch.int32, (p.batch,), (1,))
            for b in range(p.batch):
                keys = min(held[b] + new[b + 1] - new[b], capacity) if p.k_new else held[b]
                lengths[b] = max(0, keys - pad[b])
        if p.begins_out:
            begins = view(p.begins_out, torch.int32, (p.batch,), (1,))
            for b in range(p.batch):
                begins[b] = pad[b] + (cu[b] if cu else entry[b] * p.entry_rows)
        if p.k_new:
            self._store(p, held, entry, new, capacity)
        if p.q:
            self._rotate_queries(p, held)

    def _tables(self, p, dtype):
        shape = (p.rotary_rows, p.rotary_dim // 2)
        return [view(t, dtype, shape, (shape[1], 1)) for t in (p.rotary_cos, p.rotary_sin)]

    def _store(self, p, held, entry, new, capacity):
        dtype = TYPES[p.dtype]
        size = torch.empty(0, dtype=dtype).element_size()
        first = ints(p.rotary_seqlens, p.batch) or held
        for b in range(p.batch):
            for i in range(new[b + 1] - new[b]):
                slot = held[b] + i
                if slot >= capacity:
                    continue
                page = entry[b]
                if p.page_table:
                    page = ints(p.page_table + 4 * b * p.page_table_stride, slot // p.page_size + 1)[-1]
                for source, target, dim, is_key in (
                    (p.k_new, p.k_cache, p.head_dim, True),
                    (p.v_new, p.v_cache, p.head_dim_v, False),
                ):
                    k = "k" if is_key else "v"
                    row_stride = getattr(p, f"{k}_new_row_stride")
                    at = (new[b] + i) * row_stride
                    if not p.cu_seqlens_new:
                        at = b * getattr(p, f"{k}_new_batch_stride") + i * row_stride
                    shape = (p.num_heads_kv, dim)
                    x = view(source + at * size, dtype, shape, (getattr(p, f"{k}_new_head_stride"), 1))
                    if is_key and p.rotary_dim:
                        cos, sin = self._tables(p, dtype)
                        where = slice(first[b] + i, first[b] + i + 1)
                        x = reference.rotate(x[None], cos[where], sin[where], bool(p.rotary_interleaved))[0]
                    at = page * getattr(p, f"{k}_page_stride") + slot % p.page_size * getattr(p, f"{k}_row_stride")
                    view(target + at * size, dtype, shape, (getattr(p, f"{k}_head_stride"), 1)).copy_(x)

    def _rotate_queries(self, p, held):
        dtype = TYPES[p.dtype]
        size = torch.empty(0, dtype=dtype).element_size()
        cu = ints(p.cu_seqlens_q, p.batch + 1) or [b * p.seqlen_q for b in range(p.batch + 1)]
        first = ints(p.rotary_seqlens, p.batch) or held
        cos, sin = self._tables(p, dtype)
        shape = (p.num_heads, p.head_dim)
        for b in range(p.batch):
            for i in range(cu[b + 1] - cu[b]):
                at = (cu[b] + i) * p.q_row_stride
                if not p.cu_seqlens_q:
                    at = b * p.q_batch_stride + i * p.q_row_stride
                x = view(p.q + at * size, dtype, shape, (p.q_head_stride, 1))
                where = first[b] + (i if p.rotate_queries_by_row else 0)
                turned = reference.rotate(
                    x[None], cos[where : where + 1], sin[where : where + 1], bool(p.rotary_interleaved)
                )
                to = p.q_out + (cu[b] + i) * p.num_heads * p.head_dim * size
                view(to, dtype, shape, (p.head_dim, 1)).copy_(turned[0])


class _FakeDevice:
    def __init__(self, index):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def install() -> FakeLibrary:
    """Makes the package take CPU tensors and compute with the stand-in."""
    library = FakeLibrary()
    _checks.DEVICE_TYPE = "cpu"
    _device._loaded[:] = [library]
    _device.raw_stream = lambda index: 0
    _device.Gpu.memory = _one_memory
    _device.Gpu.__init__ = _start_gpu
    _device.current_device = lambda: None
    torch.cuda.device = _FakeDevice
    return library


def _start_gpu(self, library, index) -> None:
    self.index, self.device, self.handle = index, torch.device("cpu"), ctypes.c_void_p(1)
    self._memory = _device.Memory(self.device, 0)


def _one_memory(self, stream):
    return self._memory
