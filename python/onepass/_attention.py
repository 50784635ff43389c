"""From FlashAttention-3's arguments to a Call, which is prepared once for all calls of the same shapes, strides and options."""

import types

import torch

from onepass import _device
from onepass._call import Call, expect_types
from onepass._checks import refuse_gradients
from onepass._compile import is_compiling, uncompiled

# The tensors of a call, in this order, and its options. Names are those of flash_attn_with_kvcache; keys and values of the
# other functions go by k_cache and v_cache.
TENSORS = tuple(
    "q k_cache v_cache cache_seqlens page_table cu_seqlens_q cu_seqlens_k k v cu_seqlens_k_new seqused_q cache_batch_idx "
    "cache_leftpad rotary_cos rotary_sin rotary_seqlens".split()
)
OPTIONS = tuple(
    "names softmax_scale causal window_size attention_chunk softcap num_splits max_seqlen_q want_lse "
    "rotary_interleaved".split()
)
# How the caller's function calls k_cache, v_cache and cache_seqlens.
CACHE_NAMES = ("k_cache", "v_cache", "cache_seqlens")
PLAIN_NAMES = ("k", "v", "seqused_k")


def attend(tensors: tuple, options: tuple, metadata: torch.Tensor | None = None) -> tuple:
    """out and softmax_lse (None unless wanted). What is None costs nothing; cache_seqlens may be a number."""
    if is_compiling():
        return attend_uncompiled(tensors, options, metadata)
    calls, key = _device.calls(), [options]
    try:
        if torch.is_grad_enabled() and (
            tensors[0].requires_grad or tensors[1].requires_grad or tensors[2].requires_grad or tensors[7] is not None
        ):
            refuse_gradients(("q", *options[0][:2], "k", "v"), (*tensors[:3], *tensors[7:9]))
        for t in tensors:
            if t is None or type(t) is int:
                key.append(t)
            else:
                key += (t.shape, t.stride(), t.dtype, t.get_device())
        is_last = key == calls.last_key  # a layer like the one before: no need to hash
        call = None if is_last else calls.known.get(tuple(key))
    except Exception as error:
        raise _explained(error, tensors, options) from None
    if is_last:
        return calls.last(tensors, metadata)
    if call is None:
        arguments = _arguments(tensors, options)
        copied = _contiguous(arguments)
        if copied:
            return attend(
                tuple(copied.get(name, t) for name, t in zip(TENSORS, tensors, strict=True)), options, metadata
            )
        call = Call(arguments)
        calls.keep(tuple(key), call)
    calls.last_key, calls.last = key, call
    return call(tensors, metadata)


attend_uncompiled = uncompiled(attend)


def _arguments(tensors: tuple, options: tuple) -> types.SimpleNamespace:
    return types.SimpleNamespace(**dict(zip(TENSORS + OPTIONS, tensors + options, strict=True)))


def _explained(error: Exception, tensors: tuple, options: tuple) -> Exception:
    """The error that names the argument, where one of a wrong type is the cause."""
    try:
        expect_types(_arguments(tensors, options))
    except (TypeError, ValueError) as named:
        return named
    return error


def _contiguous(a) -> dict:
    """Copies of the tensors whose heads are not in one piece; not of a cache, which is not to be copied."""
    names = ("q", "k", "v") if a.names is CACHE_NAMES else ("q", "k_cache", "v_cache")
    given = ((name, getattr(a, name)) for name in names)
    return {
        name: t.contiguous()
        for name, t in given
        if isinstance(t, torch.Tensor) and t.dim() > 0 and t.stride(-1) != 1 and t.shape[-1] > 1
    }
