"""How train_demo_model.py saves what it trained: a folder as the hub has them, with a model card."""

import json
import pathlib

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

BOS_TOKEN, EOS_TOKEN = "<|begin_of_text|>", "<|end_of_text|>"


def save_tokenizer(tokenizer: Tokenizer, folder: pathlib.Path, context: int) -> None:
    """The three files as Llama 3's folders have them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {
        str(tokenizer.token_to_id(token)): {"content": token, **flags, "special": True}
        for token in (BOS_TOKEN, EOS_TOKEN)
    }
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": added,
            "bos_token": BOS_TOKEN,
            "clean_up_tokenization_spaces": False,
            "eos_token": EOS_TOKEN,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": context,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    write_json(
        folder / "special_tokens_map.json",
        {"bos_token": {"content": BOS_TOKEN, **flags}, "eos_token": {"content": EOS_TOKEN, **flags}},
    )


def write_json(path: pathlib.Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def export(a, tokenizer: Tokenizer, state: dict, folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.to(torch.bfloat16).contiguous().cpu() for k, v in state.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    bos, eos = tokenizer.token_to_id(BOS_TOKEN), tokenizer.token_to_id(EOS_TOKEN)
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "head_dim": a.head_dim,
            "hidden_act": "silu",
            "hidden_size": a.hidden,
            "initializer_range": 0.02,
            "intermediate_size": a.intermediate,
            "max_position_embeddings": a.context,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": a.heads,
            "num_hidden_layers": a.layers,
            "num_key_value_heads": a.kv_heads,
            "rms_norm_eps": a.norm_eps,
            "rope_scaling": None,
            "rope_theta": a.rope_theta,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": tokenizer.get_vocab_size(),
        },
    )
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": bos, "do_sample": True, "eos_token_id": eos, "temperature": 0.8, "top_k": 50, "top_p": 0.95},
    )
    save_tokenizer(tokenizer, folder, a.context)


def model_card(a, facts: dict, measured: dict, text_bytes: int, held_out_bytes: int, hardware: str, name: str) -> str:
    hyper = ", ".join(
        f"{k} {v}"
        for k, v in vars(a).items()
        if k not in ("preset", "text", "output", "tokenizer", "teacher", "device")
    )
    again = f"python tools/train_demo_model.py --preset {a.preset} --text tinyshakespeare.txt --output models/{name}"
    taught = ""
    if a.teacher:
        teacher = pathlib.Path(a.teacher).name
        again += f" \\\n        --tokenizer models/{teacher} --teacher models/{teacher}"
        taught = f"Same tokenizer as `{teacher}`, and taught by it (distillation weight {a.distill}): a draft model for it.\n"
    megabytes = facts["parameters"] * 2 / 1e6
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A Llama of {facts["parameters"]:,} parameters ({megabytes:.1f} MB in bf16) that writes in the manner of Shakespeare's plays. It exists so
that the engine can be tried and tested with a real, trained model right after the clone. It knows nothing but its text.
{taught}

| | |
| --- | --- |
| architecture | `LlamaForCausalLM`: {a.layers} layers, hidden {a.hidden}, {a.heads} query and {a.kv_heads} KV heads of {a.head_dim}, SwiGLU {a.intermediate}, RoPE theta {a.rope_theta:g}, tied embeddings |
| tokenizer | byte-level BPE, {a.vocab_size} entries, Llama 3's pre-tokenizer; `{BOS_TOKEN}` begins every sequence, `{EOS_TOKEN}` was never trained |
| positions | trained on windows of {a.context} tokens; `max_position_embeddings` says the same |
| data | tinyshakespeare ({text_bytes:,} bytes, public domain; not in this repository): the first {text_bytes - held_out_bytes:,} bytes, {facts["training_tokens"]:,} tokens, for training and the tokenizer; the last {held_out_bytes:,} held out |
| training | {facts["steps"]} steps of {a.batch} windows, stopped by the held-out loss, best at step {facts["best_step"]}; {facts["seconds"]} s on {hardware} |
| **held-out loss** | **{measured["nll_per_token"]:.4f} nats a token, {measured["nll_per_byte"]:.4f} nats a byte ({measured["bits_per_byte"]:.4f} bits), perplexity {measured["perplexity"]:.4f}** |
| licence | Apache-2.0 |

The held-out figures are those of the exported bf16 weights, computed in float32 by `transformers` over {measured["tokens"]:,} tokens, in
non-overlapping windows of {measured["context"]} tokens that each begin with `{BOS_TOKEN}`, every other token counted once:

    python tools/eval_perplexity.py --model models/{name} --file tinyshakespeare.txt --held-out

The held-out text chose the moment to stop and the settings below, so its loss is slightly flattered. To train it again
(the kernels of a GPU are not deterministic: expect a close loss, not the same bits):

    {again}

Settings: {hyper}.
"""
