"""flash_attn_with_kvcache: caches in one piece and in pages, appends, rotation, metadata."""

import pytest
import torch
from onepass.flash_attn_interface import flash_attn_with_kvcache, get_scheduler_metadata
from reference import check, rotate

BF16, FP16 = torch.bfloat16, torch.float16
NOWHERE = 2147480000  # a page id past the end of a row of the page table


class Cache:
    """Sequences of random keys and values; NaN wherever none of them lies."""

    def __init__(self, device, lengths, capacity, heads=2, dim=128, dim_v=None, page_size=0, dtype=BF16, entries=None):
        self.lengths, self.page_size, self.dtype = list(lengths), page_size, dtype
        dims = (dim, dim if dim_v is None else dim_v)
        batch = len(lengths)
        if page_size:
            pages = -(-capacity // page_size)
            total = batch * pages + 3
            self.places = torch.randperm(total, device=device)[: batch * pages].view(batch, pages).to(torch.int32)
            self.table = self.places.clone()
            for b, n in enumerate(lengths):
                self.table[b, -(-n // page_size) :] = NOWHERE
            shape = (total, page_size, heads)
        else:
            entries = batch if entries is None else entries
            self.index = torch.randperm(entries, device=device)[:batch].to(torch.int32)
            if entries == batch:
                self.index = torch.arange(batch, dtype=torch.int32, device=device)
            shape = (entries, capacity, heads)
        self.k, self.v = (torch.full((*shape, d), float("nan"), device=device, dtype=dtype) for d in dims)
        self.keys = [[torch.randn((n, heads, d), device=device).to(dtype) for d in dims] for n in lengths]
        for b, n in enumerate(lengths):
            for i in range(n):
                at = self.at(b, i)
                self.k[at], self.v[at] = self.keys[b][0][i], self.keys[b][1][i]
        self.seqlens = torch.tensor(self.lengths, dtype=torch.int32, device=device)

    def at(self, b, i):
        if self.page_size:
            return int(self.places[b, i // self.page_size]), i % self.page_size
        return int(self.index[b]), i

    def options(self):
        options = {"cache_seqlens": self.seqlens}
        if self.page_size:
            options["page_table"] = self.table
        elif self.k.shape[0] != len(self.lengths):
            options["cache_batch_idx"] = self.index
        return options


LENGTHS = [1, 77, 0, 64, 129]


@pytest.mark.parametrize("page_size", [0, 1, 16, 64, 256])
@pytest.mark.parametrize("dim,dim_v", [(64, 64), (128, 128), (192, 128), (256, 256)])
@pytest.mark.parametrize("seqlen_q,num_splits", [(1, 0), (1, 3), (3, 0), (70, 1)])
def test_lengths(device, page_size, dim, dim_v, seqlen_q, num_splits):
    cache = Cache(device, LENGTHS, 160, dim=dim, dim_v=dim_v, page_size=page_size)
    q = torch.randn((len(LENGTHS), seqlen_q, 8, dim), device=device).to(BF16)
    out, lse, *rest = flash_attn_with_kvcache(
        q, cache.k, cache.v, causal=True, num_splits=num_splits, return_softmax_lse=True, **cache.options()
    )
    assert out.shape == (len(LENGTHS), seqlen_q, 8, dim_v) and lse.shape == (len(LENGTHS), 8, seqlen_q)
    assert [t.numel() for t in rest] == [0, 0]
    for b in range(len(LENGTHS)):
        check(out[b], lse[b], q[b], *cache.keys[b], causal=True)


@pytest.mark.parametrize("options", [{"window_size": (40, 0)}, {"softcap": 20.0}, {"attention_chunk": 48}])
@pytest.mark.parametrize("page_size", [0, 16])
def test_options(device, page_size, options):
    cache = Cache(device, LENGTHS, 160, page_size=page_size, dtype=FP16)
    q = torch.randn((len(LENGTHS), 5, 4, 128), device=device).to(FP16)
    out = flash_attn_with_kvcache(q, cache.k, cache.v, causal=True, **options, **cache.options())
    names = {"window_size": "window", "softcap": "softcap", "attention_chunk": "chunk"}
    options = {names[name]: value for name, value in options.items()}
    for b in range(len(LENGTHS)):
        check(out[b], None, q[b], *cache.keys[b], causal=True, **options)


@pytest.mark.parametrize("page_size", [0, 32])
def test_ragged_queries(device, page_size):
    lengths_q = [1, 3, 2, 0, 5]
    cache = Cache(device, LENGTHS, 160, page_size=page_size)
    cu = torch.tensor([0, *torch.tensor(lengths_q).cumsum(0).tolist()], dtype=torch.int32, device=device)
    q = torch.randn((sum(lengths_q), 4, 128), device=device).to(BF16)
    out, lse, *_ = flash_attn_with_kvcache(
        q, cache.k, cache.v, cu_seqlens_q=cu, max_seqlen_q=5, causal=True, return_softmax_lse=True, **cache.options()
    )
    assert lse.shape == (4, sum(lengths_q))
    for b in range(len(lengths_q)):
        rows = slice(cu[b], cu[b + 1])
        check(out[rows], lse[:, rows], q[rows], *cache.keys[b], causal=True)


@pytest.mark.parametrize("page_size", [0, 16])
def test_whole_cache_and_one_length(device, page_size):
    cache = Cache(device, [64, 64], 64, page_size=page_size)
    q = torch.randn((2, 2, 4, 128), device=device).to(BF16)
    table = {"page_table": cache.table} if page_size else {}
    whole = flash_attn_with_kvcache(q, cache.k, cache.v, **table)
    part = flash_attn_with_kvcache(q, cache.k, cache.v, cache_seqlens=33, **table)
    for b in range(2):
        check(whole[b], None, q[b], *cache.keys[b])
        check(part[b], None, q[b], *(t[:33] for t in cache.keys[b]))


def test_chosen_entries(device):
    cache = Cache(device, LENGTHS, 160, entries=9)
    q = torch.randn((len(LENGTHS), 2, 4, 128), device=device).to(BF16)
    out = flash_attn_with_kvcache(q, cache.k, cache.v, causal=True, **cache.options())
    for b in range(len(LENGTHS)):
        check(out[b], None, q[b], *cache.keys[b], causal=True)


def test_chosen_rows_of_the_page_table(device):
    cache = Cache(device, LENGTHS, 160, page_size=16)
    order = torch.tensor([3, 0, 4], dtype=torch.int32, device=device)
    q = torch.randn((3, 2, 4, 128), device=device).to(BF16)
    out = flash_attn_with_kvcache(
        q,
        cache.k,
        cache.v,
        causal=True,
        cache_seqlens=cache.seqlens[order.long()],
        page_table=cache.table,
        cache_batch_idx=order,
    )
    for b, chosen in enumerate(order.tolist()):
        check(out[b], None, q[b], *cache.keys[chosen], causal=True)


@pytest.mark.parametrize("entries", [None, 8])
def test_left_padding(device, entries):
    pads = [0, 70, 0, 3, 129]
    cache = Cache(device, LENGTHS, 160, entries=entries)
    for b, n in enumerate(pads):
        for i in range(n):
            cache.k[cache.at(b, i)] = cache.v[cache.at(b, i)] = float("nan")
    q = torch.randn((len(LENGTHS), 2, 4, 128), device=device).to(BF16)
    leftpad = torch.tensor(pads, dtype=torch.int32, device=device)
    out = flash_attn_with_kvcache(q, cache.k, cache.v, causal=True, cache_leftpad=leftpad, **cache.options())
    for b, n in enumerate(pads):
        check(out[b], None, q[b], *(t[n:] for t in cache.keys[b]), causal=True)


def test_a_view_of_a_larger_cache(device):
    """K and V side by side, of which the first rows are given."""
    both = torch.randn((3, 100, 2, 2, 64), device=device).to(BF16)
    k, v = both[:, :50, 0], both[:, :50, 1]
    q = torch.randn((3, 1, 4, 64), device=device).to(BF16)
    lengths = torch.tensor([50, 7, 31], dtype=torch.int32, device=device)
    out = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths)
    for b, n in enumerate(lengths.tolist()):
        check(out[b], None, q[b], k[b, :n], v[b, :n])


def expected_append(cache, b, new, tables, first, interleaved):
    """Keys and values of sequence b with the new ones behind, at full precision."""
    k_new, v_new = new
    if tables is not None:
        rows = slice(first, first + k_new.shape[0])
        k_new = rotate(k_new, tables[0][rows], tables[1][rows], interleaved).to(cache.dtype)
    return torch.cat((cache.keys[b][0], k_new)), torch.cat((cache.keys[b][1], v_new))


def rotary_tables(device, rows, rotary_dim, dtype):
    angles = torch.rand((rows, rotary_dim // 2), device=device) * 6.28
    return angles.cos().to(dtype), angles.sin().to(dtype)


@pytest.mark.parametrize("page_size", [0, 1, 16, 64])
@pytest.mark.parametrize("rotary_dim,interleaved", [(0, True), (128, True), (128, False), (64, True), (32, False)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_append(device, page_size, rotary_dim, interleaved, causal, ragged):
    lengths = [1, 77, 0, 64, 129]
    new = [1, 3, 2, 0, 5] if ragged else [4] * 5
    cache = Cache(device, lengths, 160, page_size=page_size)
    if page_size:
        for b, n in enumerate(lengths):  # the engine has given pages for the new tokens
            used = -(-(n + new[b]) // page_size)
            cache.table[b, :used] = cache.places[b, :used]
    cu = torch.tensor([0, *torch.tensor(new).cumsum(0).tolist()], dtype=torch.int32, device=device)
    total = sum(new)
    q, k, v = (torch.randn((total, n, 128), device=device).to(BF16) for n in (4, 2, 2))
    options = {"causal": causal, "return_softmax_lse": True, **cache.options()}
    tables = None
    if rotary_dim:
        tables = rotary_tables(device, 300, rotary_dim, BF16)
        options |= {"rotary_cos": tables[0], "rotary_sin": tables[1], "rotary_interleaved": interleaved}
    if ragged:
        options |= {"cu_seqlens_q": cu, "cu_seqlens_k_new": cu, "max_seqlen_q": max(new)}
        out, lse, *_ = flash_attn_with_kvcache(q, cache.k, cache.v, k, v, **options)
    else:
        out, lse, *_ = flash_attn_with_kvcache(
            *(q.view(5, 4, 4, 128), cache.k, cache.v, k.view(5, 4, 2, 128), v.view(5, 4, 2, 128)), **options
        )
        out, lse = out.reshape(total, 4, 128), lse.transpose(0, 1).reshape(4, total)
    for b, n in enumerate(lengths):
        rows = slice(int(cu[b]), int(cu[b + 1]))
        keys, values = expected_append(cache, b, (k[rows], v[rows]), tables, n, interleaved)
        for i in range(n, n + new[b]):
            stored = cache.k[cache.at(b, i)].double()
            assert torch.allclose(stored, keys[i].double(), rtol=1e-2, atol=1e-2)
            assert torch.equal(cache.v[cache.at(b, i)], values[i])
        rotated = q[rows]
        if tables is not None and new[b]:
            where = torch.arange(new[b], device=device) * (1 if causal else 0) + n
            rotated = rotate(rotated, tables[0][where], tables[1][where], interleaved).to(BF16)
        check(out[rows], lse[:, rows], rotated, keys, values, causal=causal)
    assert torch.equal(cache.seqlens.cpu(), torch.tensor(lengths, dtype=torch.int32))


def test_append_elsewhere_and_past_the_end(device):
    """With chosen entries, left padding, rotation from other places, and new keys for which there is no room."""
    lengths, pads = [10, 158], [4, 0]
    cache = Cache(device, lengths, 160, entries=4)
    q, k, v = (torch.randn((2, 4, n, 128), device=device).to(BF16) for n in (4, 2, 2))
    first = torch.tensor([3, 100], dtype=torch.int32, device=device)
    tables = rotary_tables(device, 200, 64, BF16)
    out = flash_attn_with_kvcache(
        q,
        cache.k,
        cache.v,
        k,
        v,
        rotary_cos=tables[0],
        rotary_sin=tables[1],
        rotary_seqlens=first,
        rotary_interleaved=False,
        cache_leftpad=torch.tensor(pads, dtype=torch.int32, device=device),
        causal=True,
        **cache.options(),
    )
    for b, fitting in enumerate((4, 2)):
        keys, values = expected_append(cache, b, (k[b], v[b]), tables, int(first[b]), False)
        where = torch.arange(4, device=device) + int(first[b])
        rotated = rotate(q[b], tables[0][where], tables[1][where], False).to(BF16)
        held = slice(pads[b], lengths[b] + fitting)
        check(out[b], None, rotated, keys[held], values[held], causal=True)
    others = [e for e in range(4) if e not in cache.index.tolist()]
    assert torch.isnan(cache.k[others]).all()


def test_metadata(device):
    """Layers that share a plan."""
    cache = Cache(device, LENGTHS, 160, page_size=16)
    metadata = get_scheduler_metadata(
        len(LENGTHS), 1, 160, 8, 2, 128, cache.seqlens, page_size=16, causal=True, qkv_dtype=BF16
    )
    assert metadata.dtype == torch.int32 and metadata.device == cache.seqlens.device
    for _ in range(3):
        q = torch.randn((len(LENGTHS), 1, 8, 128), device=device).to(BF16)
        out = flash_attn_with_kvcache(q, cache.k, cache.v, causal=True, scheduler_metadata=metadata, **cache.options())
        for b in range(len(LENGTHS)):
            check(out[b], None, q[b], *cache.keys[b], causal=True)
    q = torch.randn((len(LENGTHS), 1, 4, 128), device=device).to(BF16)
    with pytest.raises(ValueError, match="scheduler_metadata: made for num_heads 8, found 4"):
        flash_attn_with_kvcache(q, cache.k, cache.v, causal=True, scheduler_metadata=metadata, **cache.options())
    with pytest.raises(ValueError, match="scheduler_metadata: expected the very tensor"):
        flash_attn_with_kvcache(q, cache.k, cache.v, scheduler_metadata=metadata.clone(), **cache.options())
