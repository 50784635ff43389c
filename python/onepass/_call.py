"""One attention call, by onepass_append_kv, onepass_attention_plan and _run.

What follows from shapes, strides and options (checks, the choice of the kernel, the structs) is prepared once; a call then
fills in addresses and queues the work.
"""

import ctypes

import torch

from onepass import _device, _library
from onepass._checks import (
    DTYPES,
    INT_MAX,
    expect_indices,
    expect_int,
    expect_like,
    expect_number,
    expect_query,
    expect_rows,
    expect_shape,
    expect_tensor,
    expect_window,
)
from onepass._plan import plan_of

_LIMIT = INT_MAX + 1
_OPTIONAL = (
    "page_table cu_seqlens_q cu_seqlens_k k v cu_seqlens_k_new seqused_q cache_batch_idx cache_leftpad rotary_cos "
    "rotary_sin rotary_seqlens".split()
)


def _rows_stride(t: torch.Tensor) -> int | None:
    """Elements from one row to the next of [batch, length, heads, dim] seen as rows; None when they are not evenly spaced."""
    batch, length = t.shape[:2]
    if length == 1:
        return t.stride(0)
    if batch == 1 or t.stride(0) == length * t.stride(1):
        return t.stride(1)
    return None


def _pointer(t: torch.Tensor | None) -> int | None:
    return t.data_ptr() if t is not None else None


def expect_types(a) -> None:
    """Tensors where there must be some, and options as the library takes them, which `a` then has."""
    for name, t in zip(("q", *a.names[:2]), (a.q, a.k_cache, a.v_cache), strict=True):
        expect_tensor(name, t)
    for name in _OPTIONAL:
        if getattr(a, name) is not None:
            expect_tensor(name, getattr(a, name))
    lengths = a.names[2]
    if lengths == "cache_seqlens":
        if not (a.cache_seqlens is None or type(a.cache_seqlens) is int or isinstance(a.cache_seqlens, torch.Tensor)):
            raise TypeError(f"{lengths}: expected a tensor or an integer, found {type(a.cache_seqlens).__name__}")
    elif a.cache_seqlens is not None:
        expect_tensor(lengths, a.cache_seqlens)
    if a.softmax_scale is not None:
        a.softmax_scale = expect_number("softmax_scale", a.softmax_scale)
    a.softcap = expect_number("softcap", a.softcap)
    a.window_size = expect_window(a.window_size)
    a.attention_chunk = expect_int("attention_chunk", a.attention_chunk)
    a.num_splits = max(0, expect_int("num_splits", a.num_splits, -INT_MAX))
    if a.max_seqlen_q is not None:
        a.max_seqlen_q = expect_int("max_seqlen_q", a.max_seqlen_q)


class Call:
    """Everything about a call but its addresses."""

    def __init__(self, a):
        expect_types(a)
        self.names = a.names
        q = a.q
        expect_query(q, (3,) if a.cu_seqlens_q is not None else (4,))
        if 0 in q.shape[-2:]:
            raise ValueError(
                f"q: expected at least one head, and a head dimension of at least 1, found {list(q.shape)}"
            )
        self.device, self.index, self.dtype, self.want_lse = q.device, q.device.index, q.dtype, a.want_lse
        self.gpu = _device.gpu(q.device.index)
        self.varlen_q = a.cu_seqlens_q is not None
        if self.varlen_q:
            if a.max_seqlen_q is None:
                raise ValueError("max_seqlen_q: expected a number, as cu_seqlens_q is given; found None")
            expect_like("cu_seqlens_q", a.cu_seqlens_q, (1,), torch.int32, self.device)
            self.batch = a.cu_seqlens_q.shape[0] - 1
            if self.batch < 0:
                raise ValueError("cu_seqlens_q: expected batch_size + 1 elements, found none")
            expect_indices("cu_seqlens_q", a.cu_seqlens_q, (self.batch + 1,), self.device)
            self.seqlen_q, self.total_q = a.max_seqlen_q, q.shape[0]
        else:
            self.batch, self.seqlen_q = q.shape[:2]
            self.total_q = self.batch * self.seqlen_q
        self.num_heads, self.head_dim = q.shape[-2:]
        self.copies_q = False
        expect_rows("q", q)
        if self.varlen_q:
            q_row_stride = q.stride(0)
        else:
            q_row_stride = _rows_stride(q)
            if q_row_stride is None:
                self.copies_q, q_row_stride = True, self.num_heads * self.head_dim

        p = self.params = _library.AttentionParams()
        p.q_row_stride, p.q_head_stride = q_row_stride, q.stride(-2)
        if self.copies_q:
            p.q_head_stride = self.head_dim
        self._prepare_keys(a)
        self._prepare_new_keys(a)

        p.q_dtype = p.kv_dtype = p.out_dtype = DTYPES[q.dtype]
        p.batch, p.total_q, p.max_seqlen_q = self.batch, self.total_q, self.seqlen_q
        p.num_heads, p.num_heads_kv = self.num_heads, self.num_heads_kv
        p.head_dim, p.head_dim_v = self.head_dim, self.head_dim_v
        p.out_row_stride, p.out_head_stride = self.num_heads * self.head_dim_v, self.head_dim_v
        p.softmax_scale = self.head_dim**-0.5 if a.softmax_scale is None else a.softmax_scale
        p.causal = int(bool(a.causal))
        p.window_left, p.window_right = a.window_size
        p.attention_chunk, p.softcap, p.num_splits = a.attention_chunk, a.softcap, a.num_splits
        self.out_shape = (*q.shape[:-1], self.head_dim_v)
        self.out_like_q = self.out_shape == tuple(q.shape) and q.is_contiguous()
        # The kernels' [num_heads, total_q], or what callers expect where that lies in memory the same way.
        one_sequence = self.batch == 1 and not self.varlen_q
        self.lse_shape = (1, self.num_heads, self.total_q) if one_sequence else (self.num_heads, self.total_q)
        self.lse_is_shaped = one_sequence or self.varlen_q
        self.doubled = a.seqused_q is not None
        if self.doubled:
            expect_indices("seqused_q", a.seqused_q, (self.batch,), self.device)
            p.batch = 2 * self.batch

        # What is null decides which kernel serves it, not what the addresses are.
        self.empty = self.total_q == 0 or self.batch == 0 or a.k_cache.numel() == 0
        p.q = p.k = p.v = p.out = p.cu_seqlens_q = p.cache_seqlens = 256
        p.softmax_lse = 256 if a.want_lse else None
        p.page_table = 256 if self.paged else None
        p.cu_seqlens_k = None if self.paged else 256
        self.native = lib = _device.native()
        if self.empty:
            return
        kernel, size, address = ctypes.c_void_p(), ctypes.c_int64(), ctypes.byref(p)
        lib.attention_choose(self.gpu.handle, address, b"auto", ctypes.byref(kernel))
        lib.attention_scratch_bytes(self.gpu.handle, kernel, address, ctypes.byref(size))
        self.kernel_number, self.scratch_bytes = kernel.value, size.value
        self.where = (self.gpu.handle, kernel, address)

    def _prepare_keys(self, a) -> None:
        """Layout and lengths of the keys that are there."""
        q, k, v, p, device = a.q, a.k_cache, a.v_cache, self.params, self.device
        self.paged = a.page_table is not None
        self.varlen_k = a.cu_seqlens_k is not None
        dims = (3,) if self.varlen_k else (4,)
        expect_like(self.names[0], k, dims, q.dtype, device)
        expect_like(self.names[1], v, dims, q.dtype, device)
        self.num_heads_kv, self.head_dim_v = k.shape[-2], v.shape[-1]
        if k.shape[-1] != self.head_dim:
            raise ValueError(f"{self.names[0]}: expected head dimension {self.head_dim}, as q has, found {k.shape[-1]}")
        if self.num_heads_kv == 0 or self.num_heads % self.num_heads_kv != 0:
            raise ValueError(
                f"{self.names[0]}: expected a number of heads that divides q's, {self.num_heads}, found {self.num_heads_kv}"
            )
        expect_shape(self.names[1], v, (*k.shape[:-1], self.head_dim_v))
        if self.head_dim_v == 0:
            raise ValueError(f"{self.names[1]}: expected a head dimension of at least 1, found 0")
        expect_rows(self.names[0], k)
        expect_rows(self.names[1], v)
        p.k_head_stride, p.v_head_stride = k.stride(-2), v.stride(-2)
        p.k_row_stride, p.v_row_stride = k.stride(-3), v.stride(-3)
        self.entry_rows = self.capacity = 0

        self.chooses_tables = self.paged and a.cache_batch_idx is not None
        entries = self.batch  # that the cache must have, unless chosen by cache_batch_idx
        if self.paged:
            if self.varlen_k:
                raise ValueError("page_table: expected None with cu_seqlens_k")
            expect_like("page_table", a.page_table, (2,), torch.int32, device)
            if a.page_table.stride(1) != 1 and a.page_table.shape[1] > 1:
                raise ValueError(f"page_table: expected contiguous rows, found strides {list(a.page_table.stride())}")
            if a.cache_leftpad is not None:
                raise NotImplementedError("cache_leftpad: not with a page_table")
            found, self.capacity = a.page_table.shape[0], a.page_table.shape[1] * k.shape[1]
            p.page_size, p.k_page_stride, p.v_page_stride = k.shape[1], k.stride(0), v.stride(0)
            p.page_table_stride = a.page_table.stride(0) if a.page_table.shape[0] > 1 else a.page_table.shape[1]
            p.total_kv_rows = k.shape[0] * k.shape[1]
            name, entry = "page_table", "rows"
        elif self.varlen_k:
            expect_indices("cu_seqlens_k", a.cu_seqlens_k, (self.batch + 1,), device)
            found, p.total_kv_rows = self.batch, k.shape[0]
            name, entry = "cu_seqlens_k", "requests"
        else:
            found, self.capacity = k.shape[0], k.shape[1]
            self._lay_out_entries(a)
            name, entry = self.names[0], "sequences"
        if a.cache_batch_idx is not None:
            if self.varlen_k:
                raise ValueError("cache_batch_idx: expected None with cu_seqlens_k")
            if self.paged:
                p.page_table_stride = a.page_table.shape[1]  # of the rows chosen, which are copied
            expect_indices("cache_batch_idx", a.cache_batch_idx, (self.batch,), device)
        elif found != entries:
            raise ValueError(f"{name}: expected {entries} {entry}, the batch size of q, found {found}")
        if isinstance(a.cache_seqlens, torch.Tensor):
            expect_indices(self.names[2], a.cache_seqlens, (self.batch,), device)
        elif isinstance(a.cache_seqlens, int) and not 0 <= a.cache_seqlens <= self.capacity:
            raise ValueError(f"{self.names[2]}: expected 0 to {self.capacity}, found {a.cache_seqlens}")
        expect_indices("cache_leftpad", a.cache_leftpad, (self.batch,), device)

    def _lay_out_entries(self, a) -> None:
        """Sequences of one capacity, [entries, capacity, heads, dim], as rows that begin `entry_rows` apart."""
        rows = []
        for name, t in ((self.names[0], a.k_cache), (self.names[1], a.v_cache)):
            entries, length = t.shape[:2]
            if entries <= 1:
                rows.append(length)
            elif length <= 1:  # any stride will do for one row
                rows.append(1)
            elif t.stride(1) > 0 and t.stride(0) % t.stride(1) == 0:
                rows.append(t.stride(0) // t.stride(1))
            else:
                raise NotImplementedError(
                    f"{name}: expected sequences a whole number of rows apart, found strides {list(t.stride())}"
                )
        if rows[0] != rows[1]:
            raise NotImplementedError(
                f"{self.names[1]}: expected sequences as many rows apart as {self.names[0]}'s, {rows[0]}, found {rows[1]}"
            )
        self.entry_rows = rows[0]
        entries, length = a.k_cache.shape[:2]
        if length <= 1:
            self.params.k_row_stride, self.params.v_row_stride = a.k_cache.stride(0), a.v_cache.stride(0)
        self.params.total_kv_rows = max(0, entries - 1) * self.entry_rows + length
        if self.params.total_kv_rows >= _LIMIT:
            raise NotImplementedError(
                f"{self.names[0]}: expected fewer than 2^31 rows, found {self.params.total_kv_rows}"
            )

    def _prepare_new_keys(self, a) -> None:
        """onepass_append_kv, when lengths must be computed, keys stored or queries rotated; else None."""
        q, device = a.q, self.device
        self.rotates = a.rotary_cos is not None
        self.appends = a.k is not None
        if self.appends != (a.v is not None):
            raise ValueError("v: expected a tensor, as k is one" if self.appends else "v: expected None, as k is")
        if self.rotates != (a.rotary_sin is not None):
            raise ValueError("rotary_sin: expected both of rotary_cos and rotary_sin, or neither")
        if self.rotates and not self.appends:
            raise ValueError("rotary_cos: expected k and v with it, found None")
        for name, t in (("cu_seqlens_k_new", a.cu_seqlens_k_new), ("rotary_seqlens", a.rotary_seqlens)):
            if t is not None and not (self.appends if name == "cu_seqlens_k_new" else self.rotates):
                raise ValueError(f"{name}: expected None without {'k' if name == 'cu_seqlens_k_new' else 'rotary_cos'}")
        self.append = None
        computes_lengths = self.varlen_k and a.cache_seqlens is None
        computes_begins = not self.paged and (a.cache_batch_idx is not None or a.cache_leftpad is not None)
        if not (self.appends or computes_lengths or computes_begins):
            return
        p = self.append = _library.AppendKvParams()
        p.dtype, p.batch = DTYPES[q.dtype], self.batch
        p.num_heads, p.num_heads_kv = self.num_heads, self.num_heads_kv
        p.head_dim, p.head_dim_v = self.head_dim, self.head_dim_v
        p.seqlen_k = a.cache_seqlens if isinstance(a.cache_seqlens, int) else self.capacity
        p.entry_rows = self.entry_rows
        self.append_address = ctypes.byref(p)
        if not self.appends:
            # The kernel's checks of strides are of what it moves.
            p.head_dim = p.head_dim_v = 8
            return
        if a.cache_seqlens is None:
            raise ValueError("cache_seqlens: expected the lengths of the cache, as k and v are given; found None")
        self._prepare_append(a, p)
        if self.rotates:
            self._prepare_rotation(a, p)
        expect_indices("rotary_seqlens", a.rotary_seqlens, (self.batch,), device)

    def _prepare_append(self, a, p: _library.AppendKvParams) -> None:
        device, varlen = self.device, a.cu_seqlens_k_new is not None
        dims = (3,) if varlen else (4,)
        for name, t, head_dim in (("k", a.k, self.head_dim), ("v", a.v, self.head_dim_v)):
            expect_like(name, t, dims, a.q.dtype, device)
            expect_rows(name, t)
            expect_shape(name, t, (*a.k.shape[:-2], self.num_heads_kv, head_dim))
        if varlen:
            expect_indices("cu_seqlens_k_new", a.cu_seqlens_k_new, (self.batch + 1,), device)
            p.total_new = a.k.shape[0]
        else:
            if a.k.shape[0] != self.batch:
                raise ValueError(f"k: expected batch size {self.batch}, as q has, found {a.k.shape[0]}")
            p.seqlen_new, p.total_new = a.k.shape[1], a.k.shape[0] * a.k.shape[1]
            p.k_new_batch_stride, p.v_new_batch_stride = a.k.stride(0), a.v.stride(0)
        p.k_new_row_stride, p.k_new_head_stride = a.k.stride(-3), a.k.stride(-2)
        p.v_new_row_stride, p.v_new_head_stride = a.v.stride(-3), a.v.stride(-2)
        p.k_page_stride, p.v_page_stride = a.k_cache.stride(0), a.v_cache.stride(0)
        p.k_row_stride, p.v_row_stride = a.k_cache.stride(1), a.v_cache.stride(1)
        p.k_head_stride, p.v_head_stride = a.k_cache.stride(2), a.v_cache.stride(2)
        p.page_size = a.k_cache.shape[1]
        if self.paged:
            p.page_table_stride, p.pages_per_request = self.params.page_table_stride, a.page_table.shape[1]

    def _prepare_rotation(self, a, p: _library.AppendKvParams) -> None:
        for name, t in (("rotary_cos", a.rotary_cos), ("rotary_sin", a.rotary_sin)):
            expect_like(name, t, (2,), a.q.dtype, self.device)
            expect_shape(name, t, a.rotary_cos.shape)
            if not t.is_contiguous():
                raise ValueError(f"{name}: expected a contiguous tensor, found strides {list(t.stride())}")
        p.rotary_rows, p.rotary_dim = a.rotary_cos.shape[0], 2 * a.rotary_cos.shape[1]
        if p.rotary_dim % 16 != 0 or p.rotary_dim > self.head_dim:
            raise ValueError(
                f"rotary_cos: expected a multiple of 8 columns, at most {self.head_dim // 2}, found {p.rotary_dim // 2}"
            )
        p.rotary_interleaved = int(bool(a.rotary_interleaved))
        # Under a mask query i stands at the place of new key i; without one all stand where the cache ends.
        left, right = a.window_size
        is_local = (0 <= left < self.capacity - 1) or (0 <= right < self.seqlen_q - 1) or a.attention_chunk > 0
        p.rotate_queries_by_row = int(bool(a.causal) or is_local or self.seqlen_q == 1)
        p.q_row_stride, p.q_head_stride = a.q.stride(-3), a.q.stride(-2)
        if self.varlen_q:
            p.total_q = self.total_q
        else:
            p.q_batch_stride, p.seqlen_q, p.total_q = a.q.stride(0), self.seqlen_q, self.total_q
        self.copies_q = False  # the rotated copy is without gaps
        self.params.q_row_stride, self.params.q_head_stride = self.num_heads * self.head_dim, self.head_dim

    def __call__(self, tensors: tuple, metadata: torch.Tensor | None) -> tuple:
        if _device.current_device() != self.index:
            with torch.cuda.device(self.index):
                return self(tensors, metadata)
        q, k_cache, v_cache, lengths, page_table, cu_seqlens_q, begins, *rest = tensors
        if self.out_like_q:
            out = torch.empty_like(q)  # half the time of the other
        else:
            out = torch.empty(self.out_shape, dtype=self.dtype, device=self.device)
        lse = None
        if self.want_lse:
            lse = torch.empty(self.lse_shape, dtype=torch.float32, device=self.device)
        stream = _device.raw_stream(self.index)
        memory = self.gpu.memory(stream)
        if self.copies_q:
            q = q.contiguous()
        if self.chooses_tables:
            page_table = page_table.index_select(0, rest[4])
        if cu_seqlens_q is None:
            cu_seqlens_q = memory.steps(self.batch + 1, self.seqlen_q)
        if self.append is not None:
            q, lengths, begins = self._append(tensors, q, page_table, memory, stream)
        elif not self.empty:
            if lengths is None or type(lengths) is int:
                lengths = memory.full(self.batch, self.capacity if lengths is None else lengths)
            if begins is None and page_table is None:
                begins = memory.steps(self.batch + 1, self.entry_rows)
        if self.empty:
            out.zero_()
            if lse is not None:
                lse.fill_(float("-inf"))
            return out, self._shaped(lse)
        if self.doubled:
            cu_seqlens_q, lengths, begins, page_table = _double(rest[3], cu_seqlens_q, lengths, begins, page_table)

        p = self.params
        p.q, p.k, p.v = q_at, k_at, v_at = q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr()
        if (q_at | k_at | v_at) & 15:
            raise ValueError(
                f"q, {self.names[0]} and {self.names[1]}: expected tensors that begin at multiples of 16 bytes"
            )
        p.out, p.cu_seqlens_q, p.cache_seqlens = out.data_ptr(), cu_seqlens_q.data_ptr(), lengths.data_ptr()
        if lse is not None:
            p.softmax_lse = lse.data_ptr()
        if page_table is not None:
            p.page_table = page_table.data_ptr()
        else:
            p.cu_seqlens_k = begins.data_ptr()
        if metadata is None:
            scratch, planned = memory.scratch(self.kernel_number, self.scratch_bytes), False
        else:
            scratch, planned = plan_of(metadata).scratch_for(self, memory, stream)
        queue = self.native.attention_run if planned else self.native.attention_plan_and_run
        handle, kernel, params = self.where
        queue(handle, kernel, params, scratch.data_ptr(), self.scratch_bytes, stream)
        return out, self._shaped(lse)

    def _append(self, tensors: tuple, q, page_table, memory: _device.Memory, stream: int) -> tuple:
        """Queues onepass_append_kv; returns the queries, lengths and beginnings that attention takes."""
        (_, k_cache, v_cache, cache_seqlens, _, cu_seqlens_q, cu_seqlens_k, k, v) = tensors[:9]
        (cu_seqlens_k_new, _, cache_batch_idx, cache_leftpad, rotary_cos, rotary_sin, rotary_seqlens) = tensors[9:]
        p = self.append
        lengths, begins = memory.lengths(self.batch)
        if self.paged:
            begins = None
        p.seqlens_k_out, p.begins_out = lengths.data_ptr(), _pointer(begins)
        if cache_seqlens is not None and type(cache_seqlens) is not int:
            p.cache_seqlens = cache_seqlens.data_ptr()
        p.cu_seqlens_k, p.cache_leftpad = _pointer(cu_seqlens_k), _pointer(cache_leftpad)
        p.cache_batch_idx = None if self.paged else _pointer(cache_batch_idx)
        if self.appends:
            p.k_new, p.v_new, p.cu_seqlens_new = k.data_ptr(), v.data_ptr(), _pointer(cu_seqlens_k_new)
            p.k_cache, p.v_cache, p.page_table = k_cache.data_ptr(), v_cache.data_ptr(), _pointer(page_table)
        if self.rotates:
            rotated = torch.empty((self.total_q, self.num_heads, self.head_dim), dtype=self.dtype, device=self.device)
            p.q, p.q_out, p.cu_seqlens_q = q.data_ptr(), rotated.data_ptr(), _pointer(cu_seqlens_q)
            p.rotary_cos, p.rotary_sin = rotary_cos.data_ptr(), rotary_sin.data_ptr()
            p.rotary_seqlens = _pointer(rotary_seqlens)
            q = rotated
        self.native.append_kv(self.gpu.handle, self.append_address, stream)
        return q, lengths, begins

    def _shaped(self, lse: torch.Tensor | None) -> torch.Tensor | None:
        """[num_heads, total_q], or of batches [batch, num_heads, seqlen_q]."""
        if lse is None or self.lse_is_shaped:
            return lse
        return lse.view(self.num_heads, self.batch, self.seqlen_q).transpose(0, 1).contiguous()


def _double(seqused_q, cu_seqlens_q, lengths, begins, page_table) -> tuple:
    """Cuts each request in two: the queries that are used, and those that are not, which see no keys."""
    batch = seqused_q.shape[0]
    ends = torch.stack((cu_seqlens_q[:-1], cu_seqlens_q[:-1] + seqused_q), dim=1).flatten()
    lengths = lengths[:batch]
    lengths = torch.stack((lengths, torch.zeros_like(lengths)), dim=1).flatten()
    if begins is not None:
        begins = begins[:batch].repeat_interleave(2, output_size=2 * batch)
    if page_table is not None:
        page_table = page_table.repeat_interleave(2, dim=0, output_size=2 * batch)
    return torch.cat((ends, cu_seqlens_q[-1:])), lengths, begins, page_table
