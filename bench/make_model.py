#!/usr/bin/env python3
"""Writes a model of a well-known shape with random weights: a Hugging Face folder and the same weights as GGUF, for benchmarks.

    python bench/make_model.py --shape qwen2.5-0.5b --output /tmp/qwen2.5-0.5b

OUTPUT/config.json, model.safetensors (bf16), tokenizer.json (a byte-level BPE of the real one's size, with random merges), and
OUTPUT/model.gguf (bf16, norms and biases float32 as llama.cpp's converter leaves them). Needs numpy and gguf from pip.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

try:
    import gguf
    import numpy as np
except ImportError:
    gguf = None

SHAPES = {
    "qwen2.5-0.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "torch_dtype": "bfloat16",
    },
}
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def to_bf16(values: np.ndarray) -> np.ndarray:
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def tensors(config: dict, random: np.random.Generator):
    """Name, GGUF's name and values of every tensor; matrices as bf16 bits, vectors as float32."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]

    def matrix(rows: int, cols: int) -> np.ndarray:
        return to_bf16(random.standard_normal((rows, cols), dtype=np.float32) * 0.02)

    def vector(size: int, mean: float) -> np.ndarray:
        return mean + 0.02 * random.standard_normal(size, dtype=np.float32)

    yield "model.embed_tokens.weight", "token_embd.weight", matrix(config["vocab_size"], hidden)
    yield "model.norm.weight", "output_norm.weight", vector(hidden, 1)
    for i in range(config["num_hidden_layers"]):
        name, short = f"model.layers.{i}.", f"blk.{i}."
        yield name + "input_layernorm.weight", short + "attn_norm.weight", vector(hidden, 1)
        yield name + "post_attention_layernorm.weight", short + "ffn_norm.weight", vector(hidden, 1)
        for part, size in (("q", hidden), ("k", kv), ("v", kv)):
            yield name + f"self_attn.{part}_proj.weight", short + f"attn_{part}.weight", matrix(size, hidden)
            yield name + f"self_attn.{part}_proj.bias", short + f"attn_{part}.bias", vector(size, 0)
        yield name + "self_attn.o_proj.weight", short + "attn_output.weight", matrix(hidden, hidden)
        yield name + "mlp.gate_proj.weight", short + "ffn_gate.weight", matrix(inner, hidden)
        yield name + "mlp.up_proj.weight", short + "ffn_up.weight", matrix(inner, hidden)
        yield name + "mlp.down_proj.weight", short + "ffn_down.weight", matrix(hidden, inner)


def write_safetensors(path: pathlib.Path, parts: list) -> None:
    header, offset = {}, 0
    for name, bits in parts:
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [offset, offset + bits.nbytes]}
        offset += bits.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, bits in parts:
            file.write(bits.tobytes())


def write_gguf(path: pathlib.Path, config: dict, parts: list) -> None:
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, values in parts:
        if values.dtype == np.uint16:
            writer.add_tensor(name, values.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tokenizer(folder: pathlib.Path, size: int, random: np.random.Generator) -> None:
    visible = [c for c in range(256) if 33 <= c <= 126 or 161 <= c <= 172 or 174 <= c]
    hidden = [c for c in range(256) if c not in visible]
    tokens = [chr(c) for c in visible] + [chr(256 + i) for i in range(len(hidden))]
    vocab, merges = {token: i for i, token in enumerate(tokens)}, []
    while len(tokens) < size:
        left, right = (tokens[int(at)] for at in random.random(2) ** 2 * min(len(tokens), 8000))
        if left + right not in vocab:
            vocab[left + right] = len(tokens)
            tokens.append(left + right)
            merges.append(f"{left} {right}")
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    split = {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": size + i, "content": content, **special} for i, content in enumerate(added)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": level,
        "decoder": level,
        "model": {"type": "BPE", "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    args = parser.parse_args()
    if gguf is None:
        sys.exit(
            "make_model.py: numpy, gguf: expected them to be installed (pip install numpy gguf), found one missing"
        )
    config, random = SHAPES[args.shape], np.random.default_rng(1)
    args.output.mkdir(parents=True, exist_ok=True)
    parts = list(tensors(config, random))
    as_bf16 = [(name, values if values.dtype == np.uint16 else to_bf16(values)) for name, _, values in parts]
    write_safetensors(args.output / "model.safetensors", as_bf16)
    write_gguf(args.output / "model.gguf", config, [(name, values) for _, name, values in parts])
    (args.output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(args.output, config["bos_token_id"], random)
    (args.output / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}) + "\n")


if __name__ == "__main__":
    main()
