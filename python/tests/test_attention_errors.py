"""What is wrong or not supported raises an error that names the argument."""

import inspect

import pytest
import torch
from onepass import flash_attn_interface as interface

BF16 = torch.bfloat16


def tensors(device, **changes):
    given = {
        "q": torch.zeros((2, 3, 4, 64), device=device, dtype=BF16),
        "k_cache": torch.zeros((2, 10, 2, 64), device=device, dtype=BF16),
        "v_cache": torch.zeros((2, 10, 2, 64), device=device, dtype=BF16),
    }
    return {**given, **{name: make(device) for name, make in changes.items()}}


def zeros(*shape, dtype=BF16):
    return lambda device: torch.zeros(shape, device=device, dtype=dtype)


INT = torch.int32
CASES = [
    ({"qv": zeros(2, 3, 4, 64)}, NotImplementedError, "qv: a second query tensor"),
    ({"k_descale": zeros(2, 2, dtype=torch.float32)}, NotImplementedError, "k_descale: scales belong to float8"),
    (
        {"q": zeros(2, 3, 4, 64, dtype=torch.float32)},
        NotImplementedError,
        "q: expected torch.float16 or torch.bfloat16",
    ),
    ({"q": zeros(2, 3, 64)}, ValueError, "q: expected 4 dimensions, found 3"),
    ({"q": zeros(2, 3, 5, 64)}, ValueError, "k_cache: expected a number of heads that divides q's, 5, found 2"),
    ({"q": zeros(3, 3, 4, 64)}, ValueError, "k_cache: expected 3 sequences, the batch size of q, found 2"),
    ({"k_cache": zeros(2, 10, 2, 128)}, ValueError, "k_cache: expected head dimension 64, as q has, found 128"),
    ({"k_cache": zeros(2, 10, 2, 64, dtype=torch.float16)}, ValueError, "k_cache: expected torch.bfloat16, found"),
    ({"v_cache": zeros(2, 11, 2, 64)}, ValueError, r"v_cache: expected shape \[2, 10, 2, 64\], found \[2, 11, 2, 64\]"),
    (
        {"v_cache": lambda d: torch.zeros((2, 10, 64, 2), device=d, dtype=BF16).transpose(2, 3)},
        ValueError,
        "v_cache: exp",
    ),
    (
        {"cache_seqlens": zeros(2, dtype=torch.int64)},
        ValueError,
        "cache_seqlens: expected torch.int32, found torch.int64",
    ),
    ({"cache_seqlens": zeros(3, dtype=INT)}, ValueError, r"cache_seqlens: expected shape \[2\], found \[3\]"),
    ({"cache_seqlens": lambda _: 11}, ValueError, "cache_seqlens: expected 0 to 10, found 11"),
    ({"page_table": zeros(3, 4, dtype=INT)}, ValueError, "page_table: expected 2 rows, the batch size of q, found 3"),
    ({"page_table": zeros(2, 4, dtype=torch.int64)}, ValueError, "page_table: expected torch.int32"),
    (
        {"page_table": zeros(2, 4, dtype=INT), "cache_leftpad": zeros(2, dtype=INT)},
        NotImplementedError,
        "cache_leftpad: not with a page_table",
    ),
    ({"cache_batch_idx": zeros(1, dtype=INT)}, ValueError, r"cache_batch_idx: expected shape \[2\], found \[1\]"),
    ({"k": zeros(2, 1, 2, 64)}, ValueError, "v: expected a tensor, as k is one"),
    (
        {"k": zeros(2, 1, 2, 64), "v": zeros(2, 1, 2, 64)},
        ValueError,
        "cache_seqlens: expected the lengths of the cache",
    ),
    (
        {"k": zeros(2, 1, 3, 64), "v": zeros(2, 1, 3, 64), "cache_seqlens": zeros(2, dtype=INT)},
        ValueError,
        r"k: expected shape \[2, 1, 2, 64\], found \[2, 1, 3, 64\]",
    ),
    ({"rotary_cos": zeros(10, 16)}, ValueError, "rotary_sin: expected both of rotary_cos and rotary_sin"),
    ({"rotary_cos": zeros(10, 16), "rotary_sin": zeros(10, 16)}, ValueError, "rotary_cos: expected k and v with it"),
    ({"rotary_seqlens": zeros(2, dtype=INT)}, ValueError, "rotary_seqlens: expected None without rotary_cos"),
    ({"cu_seqlens_k_new": zeros(3, dtype=INT)}, ValueError, "cu_seqlens_k_new: expected None without k"),
    ({"q": zeros(6, 4, 64), "cu_seqlens_q": zeros(3, dtype=INT)}, ValueError, "max_seqlen_q: expected a number"),
    ({"scheduler_metadata": zeros(8, dtype=INT)}, ValueError, "scheduler_metadata: expected the very tensor"),
    ({"window_size": lambda _: (1, 2, 3)}, ValueError, r"window_size: expected \(left, right\), found \(1, 2, 3\)"),
    ({"window_size": lambda _: 5}, ValueError, r"window_size: expected \(left, right\), found 5"),
    ({"window_size": lambda _: None}, ValueError, r"window_size: expected \(left, right\), found None"),
    ({"window_size": lambda _: (1.5, 0)}, TypeError, "window_size: expected an integer, found float"),
    ({"window_size": lambda _: ([1], 0)}, TypeError, "window_size: expected an integer, found list"),
    ({"attention_chunk": lambda _: 1.5}, TypeError, "attention_chunk: expected an integer, found float"),
    ({"attention_chunk": lambda _: (1 << 32) + 3}, ValueError, "attention_chunk: expected 0 to 2147483647, found 4294"),
    ({"attention_chunk": zeros(2, dtype=INT)}, TypeError, "attention_chunk: expected an integer, found Tensor"),
    ({"num_splits": lambda _: None}, TypeError, "num_splits: expected an integer, found NoneType"),
    ({"num_splits": lambda _: (1 << 32) + 3}, ValueError, "num_splits: expected -2147483647 to 2147483647, found 4294"),
    ({"softcap": lambda _: None}, TypeError, "softcap: expected a number, found NoneType"),
    ({"softmax_scale": lambda _: "1"}, TypeError, "softmax_scale: expected a number, found str"),
    (
        {"q": zeros(6, 4, 64), "cu_seqlens_q": zeros(3, dtype=INT), "max_seqlen_q": lambda _: (1 << 32) + 3},
        ValueError,
        "max_seqlen_q: expected 0 to 2147483647, found 4294967299",
    ),
    (
        {"q": zeros(6, 4, 64), "cu_seqlens_q": zeros(3, dtype=INT), "max_seqlen_q": lambda _: 3.0},
        TypeError,
        "max_seqlen_q: expected an integer, found float",
    ),
    ({"q": lambda _: None}, TypeError, "q: expected a tensor, found NoneType"),
    ({"q": lambda _: [1.0]}, TypeError, "q: expected a tensor, found list"),
    ({"v_cache": lambda _: [1.0]}, TypeError, "v_cache: expected a tensor, found list"),
    ({"k": lambda _: [1.0], "v": lambda _: [1.0]}, TypeError, "k: expected a tensor, found list"),
    ({"cache_seqlens": lambda _: 2.5}, TypeError, "cache_seqlens: expected a tensor or an integer, found float"),
    ({"cache_seqlens": lambda _: True}, TypeError, "cache_seqlens: expected a tensor or an integer, found bool"),
    ({"cache_seqlens": lambda _: [2, 3]}, TypeError, "cache_seqlens: expected a tensor or an integer, found list"),
    ({"page_table": lambda _: [[0], [1]]}, TypeError, "page_table: expected a tensor, found list"),
    ({"cu_seqlens_q": lambda _: [0, 3, 6]}, TypeError, "cu_seqlens_q: expected a tensor, found list"),
    ({"q": zeros(2, 3, 4, 0)}, ValueError, r"q: expected at least one head, .* found \[2, 3, 4, 0\]"),
    ({"v_cache": zeros(2, 10, 2, 0)}, ValueError, "v_cache: expected a head dimension of at least 1, found 0"),
    (
        {
            "k": zeros(2, 1, 2, 64),
            "v": zeros(2, 1, 2, 64),
            "cache_seqlens": zeros(2, dtype=INT),
            "rotary_cos": zeros(10, 4),
            "rotary_sin": zeros(10, 4),
        },
        ValueError,
        "rotary_cos: expected a multiple of 8 columns, at most 32, found 4",
    ),
]


@pytest.mark.parametrize("changes,error,message", CASES, ids=lambda x: "+".join(x) if isinstance(x, dict) else "")
def test_with_kvcache(device, changes, error, message):
    with pytest.raises(error, match="^" + message):
        interface.flash_attn_with_kvcache(**tensors(device, **changes))


def test_without_gradients(device):
    """Where nothing looks for gradients, the names are as good."""
    with torch.no_grad(), pytest.raises(TypeError, match="^q: expected a tensor, found NoneType"):
        interface.flash_attn_with_kvcache(**tensors(device, q=lambda _: None))
    with torch.no_grad(), pytest.raises(TypeError, match="^v: expected a tensor, found list"):
        q = torch.zeros((1, 2, 1, 64), device=device, dtype=BF16)
        interface.flash_attn_func(q, q, [1.0])


def test_lengths_that_are_no_tensor(device):
    q, cu = torch.zeros((4, 1, 64), device=device, dtype=BF16), torch.zeros(2, device=device, dtype=INT)
    with pytest.raises(TypeError, match="^seqused_k: expected a tensor, found int"):
        interface.flash_attn_varlen_func(q, q, q, cu, cu, 4, 4, seqused_k=3)


METADATA = {
    "page_size": (0, ValueError, "expected 1 to 2147483647, found 0"),
    "headdim": (0, ValueError, "expected 1 to 2147483647, found 0"),
    "batch_size": ((1 << 32) + 3, ValueError, "expected 0 to 2147483647, found 4294967299"),
    "max_seqlen_q": (1 << 30, ValueError, "expected fewer than 2^31 queries, found 2 x 1073741824"),
    "max_seqlen_k": (2.5, TypeError, "expected an integer, found float"),
    "attention_chunk": (None, TypeError, "expected an integer, found NoneType"),
    "num_splits": ((1 << 32) + 3, ValueError, "expected -2147483647 to 2147483647, found 4294967299"),
    "window_size": (5, ValueError, "expected (left, right), found 5"),
    "cache_seqlens": (3, TypeError, "expected a tensor, found int"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata(device, name):
    given = {"batch_size": 2, "max_seqlen_q": 1, "max_seqlen_k": 64, "num_heads_q": 4, "num_heads_kv": 2, "headdim": 64}
    given["cache_seqlens"] = torch.zeros(2, device=device, dtype=INT)
    value, error, message = METADATA[name]
    with pytest.raises(error) as raised:
        interface.get_scheduler_metadata(**{**given, name: value})
    assert str(raised.value) == f"{name}: {message}"


def test_heads_that_are_too_wide(device):
    q, k, v = (torch.zeros((1, 2, 1, 520), device=device, dtype=BF16) for _ in range(3))
    with pytest.raises(NotImplementedError, match="head_dim"):
        interface.flash_attn_func(q, k, v)


def test_gradients(device):
    q, k, v = (torch.zeros((1, 2, 1, 64), device=device, dtype=BF16) for _ in range(3))
    k.requires_grad_()
    with pytest.raises(NotImplementedError, match="^k: requires_grad: there is no backward pass"):
        interface.flash_attn_func(q, k, v)
    with torch.no_grad():
        interface.flash_attn_func(q, k, v)


def test_memory_of_another_place(gpu):
    q, k, v = (torch.zeros((1, 2, 1, 64), dtype=BF16) for _ in range(3))
    with pytest.raises(ValueError, match="^q: expected a CUDA tensor, found one on cpu"):
        interface.flash_attn_func(q, k, v)
    with pytest.raises(ValueError, match="^k: expected a tensor on cuda:0, found one on cpu"):
        interface.flash_attn_func(q.to(gpu), k, v)


def test_misaligned(device):
    memory = torch.zeros(2 * 64 + 1, device=device, dtype=BF16)
    q = memory[1:].view(1, 2, 1, 64)
    with pytest.raises(ValueError, match="^q, k and v: expected tensors that begin at multiples of 16 bytes"):
        interface.flash_attn_func(q, torch.zeros_like(q), torch.zeros_like(q))


def test_combine(device):
    out, lse = torch.zeros((2, 1, 3, 4, 8), device=device), torch.zeros((2, 1, 3, 4), device=device)
    with pytest.raises(ValueError, match="^lse_partial: expected shape"):
        interface.flash_attn_combine(out, lse.transpose(2, 3))
    with pytest.raises(ValueError, match="^out_partial: expected torch.float32, found torch.bfloat16"):
        interface.flash_attn_combine(out.to(BF16), lse)
    with pytest.raises(ValueError, match="^out_dtype: expected torch.float32"):
        interface.flash_attn_combine(out, lse, out_dtype=torch.float64)
    with pytest.raises(ValueError, match="^out: expected torch.float32"):
        interface.flash_attn_combine(out, lse, out=torch.zeros((1, 3, 4, 8), device=device, dtype=BF16))


# The functions' arguments and defaults, as FlashAttention-3 has them.
ARGUMENTS = {
    "flash_attn_func": "q k v softmax_scale=None causal=False qv=None q_descale=None k_descale=None v_descale=None "
    "window_size=(-1,-1) attention_chunk=0 softcap=0.0 num_splits=1 pack_gqa=None deterministic=False sm_margin=0 "
    "return_attn_probs=False",
    "flash_attn_varlen_func": "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k seqused_q=None seqused_k=None "
    "softmax_scale=None causal=False qv=None q_descale=None k_descale=None v_descale=None window_size=(-1,-1) "
    "attention_chunk=0 softcap=0.0 num_splits=1 pack_gqa=None deterministic=False sm_margin=0 return_attn_probs=False",
    "flash_attn_with_kvcache": "q k_cache v_cache k=None v=None qv=None rotary_cos=None rotary_sin=None "
    "cache_seqlens=None cache_batch_idx=None cache_leftpad=None page_table=None cu_seqlens_q=None cu_seqlens_k_new=None "
    "max_seqlen_q=None rotary_seqlens=None q_descale=None k_descale=None v_descale=None softmax_scale=None causal=False "
    "window_size=(-1,-1) attention_chunk=0 softcap=0.0 rotary_interleaved=True scheduler_metadata=None num_splits=0 "
    "pack_gqa=None sm_margin=0 return_softmax_lse=False",
    "flash_attn_combine": "out_partial lse_partial out=None out_dtype=None",
    "get_scheduler_metadata": "batch_size max_seqlen_q max_seqlen_k num_heads_q num_heads_kv headdim cache_seqlens "
    "qkv_dtype=torch.bfloat16 headdim_v=None cu_seqlens_q=None cu_seqlens_k_new=None cache_leftpad=None page_size=None "
    "max_seqlen_k_new=0 causal=False window_size=(-1,-1) attention_chunk=0 has_softcap=False num_splits=0 pack_gqa=None "
    "sm_margin=0",
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name):
    parameters = inspect.signature(getattr(interface, name)).parameters.values()
    found = [
        p.name if p.default is inspect.Parameter.empty else f"{p.name}={p.default!r}".replace(" ", "")
        for p in parameters
    ]
    assert found == ARGUMENTS[name].split()
