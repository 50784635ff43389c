"""FlashAttention-3 as a peer of attention_peers_cuda.py, in the first of its builds that Python finds and that takes the shape:

- flash_attn_interface: upstream's own (hopper/ of flash-attention), every layout;
- fa3_fwd_interface: upstream's forward pass as a wheel (`pip install fa3-fwd`), contiguous K and V alone;
- vllm.vllm_flash_attn: the one in vLLM's wheels. It always packs the heads of a group, which costs it 2 to 37% on contiguous K and V.

What depends on lengths alone (FA3's scheduler metadata) is computed beforehand, like onepass's plan.
"""

import importlib
import inspect

import torch

UPSTREAM = ("flash_attn_interface", "fa3_fwd_interface")
VLLM = "vllm.vllm_flash_attn"


def builds() -> dict:
    """Name -> module, of the builds that are installed."""
    found = {}
    for name in (*UPSTREAM, VLLM):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if getattr(module, "FA3_AVAILABLE", True):
            found[name] = module
    return found


def scheduler_metadata(module, shape: dict, dtype: torch.dtype, causal: bool, lengths, **options) -> torch.Tensor:
    return module.get_scheduler_metadata(
        batch_size=shape["batch"],
        max_seqlen_q=shape["seqlen_q"],
        num_heads_q=shape["num_heads"],
        num_heads_kv=shape["num_heads_kv"],
        headdim=shape["head_dim"],
        headdim_v=shape["head_dim_v"],
        cache_seqlens=lengths,
        qkv_dtype=dtype,
        page_size=shape["page_size"],
        causal=causal,
        **options,
    )


def upstream_calls(module, shape: dict, inputs) -> list:
    causal = shape["causal"] and shape["seqlen_q"] > 1
    if shape["page_size"] == 0:
        splits = 1 if shape["seqlen_q"] == shape["seqlen_k"] else 0  # 0: as many as it likes
        return [
            lambda q=q, k=k, v=v: module.flash_attn_func(q, k, v, causal=causal, num_splits=splits)
            for q, k, v in inputs.copies
        ]
    capacity = inputs.page_table.shape[1] * shape["page_size"]
    options = {"cache_seqlens": inputs.lengths, "page_table": inputs.page_table, "causal": causal}
    options["scheduler_metadata"] = scheduler_metadata(
        module, shape, inputs.dtype, causal, inputs.lengths, max_seqlen_k=capacity
    )
    return [
        lambda q=q, k=k, v=v: module.flash_attn_with_kvcache(q, inputs.pages(k), inputs.pages(v), **options)
        for q, k, v in inputs.copies
    ]


def vllm_calls(module, shape: dict, inputs) -> list:
    """Its interface has queries of any lengths alone, [total_q, heads, head_dim], which costs 0.7 us."""
    causal = shape["causal"] and shape["seqlen_q"] > 1
    options = {
        "cu_seqlens_q": inputs.cu_seqlens_q,
        "max_seqlen_q": shape["seqlen_q"],
        "causal": causal,
        "fa_version": 3,
    }
    if shape["page_size"] > 0:
        capacity = inputs.page_table.shape[1] * shape["page_size"]
        options |= {"seqused_k": inputs.lengths, "block_table": inputs.page_table, "max_seqlen_k": capacity}
        options["scheduler_metadata"] = scheduler_metadata(
            module,
            shape,
            inputs.dtype,
            causal,
            inputs.lengths,
            max_seqlen_k=capacity,
            cu_seqlens_q=inputs.cu_seqlens_q,
        )
    else:
        options |= {"cu_seqlens_k": inputs.cu_seqlens_k, "max_seqlen_k": shape["seqlen_k"]}

    def keys(t: torch.Tensor) -> torch.Tensor:
        return inputs.pages(t) if shape["page_size"] > 0 else t.flatten(0, 1)

    return [
        lambda q=q, k=k, v=v: module.flash_attn_varlen_func(q.flatten(0, 1), keys(k), keys(v), **options)
        for q, k, v in inputs.copies
    ]


def calls_of(name: str, module, shape: dict, inputs) -> list:
    """One call for each copy of the inputs; raises where this build does not take the shape."""
    return (vllm_calls if name == VLLM else upstream_calls)(module, shape, inputs)


def describe(modules: dict) -> str:
    return ", ".join(f"{name} ({inspect.getfile(module)})" for name, module in modules.items()) or "not installed"
