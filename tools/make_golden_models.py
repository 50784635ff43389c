#!/usr/bin/env python3
"""Writes tests/golden/models: tiny random models with the logits that `transformers` computes for them.

One folder a model, as the hub has them, and two files beside the weights:

  config.json  generation_config.json  model.safetensors | model-0000x-of-0000y.safetensors + model.safetensors.index.json
  golden.json         what the model exercises, the input ids, the greedy continuation and its top-2 margins
  golden.safetensors  logits         [tokens, vocab] float32: weights upcast to float32, float32 compute, eager attention
                      logits_native  [tokens, vocab] in the weights' dtype (bf16 and fp16 models only)

Norm weights and biases are random too: a loader that forgot them would not be noticed with ones and zeros. Weights are
large enough that attention is peaked and the logits are far apart. The continuation is float32 greedy by a full
forward at every step (no cache), never containing the end-of-text id; seeds are searched, in order, until it is lively
and every margin is far above float32 noise.

Configs come in two spellings. `hub`: what folders on the hub have (rope_theta, rope_scaling, torch_dtype, no
layer_types). `v5`: what transformers 5 writes (rope_parameters, dtype, layer_types). Both are read back before a
model is kept, and must give the same logits bit for bit.

  python tools/make_golden_models.py [--output tests/golden/models] [--only NAME ...]
"""

import argparse
import dataclasses
import json
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file

VOCAB = 131  # odd: the last lanes of a vector loop matter
BOS, EOS = 1, 2
CONTINUATION = 32
MIN_MARGIN = 2e-2
MAX_SEEDS = 200

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Spec:
    name: str
    family: str  # llama, mistral, qwen2, qwen3
    shows: str
    config: dict
    rope: dict = dataclasses.field(default_factory=dict)  # in transformers 5's terms
    dtype: str = "float32"
    tokens: int = 48
    spelling: str = "hub"
    rope_type_key: str = "rope_type"  # older hub folders say "type"
    shard_size: str | None = None


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 32}


def heads(query: int, kv: int, head_dim: int = 64, **others) -> dict:
    return {"num_attention_heads": query, "num_key_value_heads": kv, "head_dim": head_dim, **others}


def specs() -> list[Spec]:
    llama = [
        # head_dim is hidden_size / num_attention_heads here and not in the config, as in Llama 2's folders.
        Spec(
            "llama2-mha",
            "llama",
            "multi-head attention, untied, no head_dim key",
            {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1},
            dtype="float16",
        ),
        Spec("llama-gqa", "llama", "grouped-query attention 4:2", heads(4, 2), tokens=96),
        Spec("llama-mqa", "llama", "multi-query attention 4:1", heads(4, 1)),
        Spec(
            "llama-group3",
            "llama",
            "a group of 3 query heads, head_dim unlike hidden/heads",
            heads(3, 1, hidden_size=48),
        ),
        Spec("llama-biases", "llama", "attention_bias and mlp_bias", heads(2, 1, attention_bias=True, mlp_bias=True)),
        Spec(
            "llama31",
            "llama",
            "rope_scaling llama3, untied",
            heads(2, 1, max_position_embeddings=512),
            rope=LLAMA3_ROPE,
            tokens=96,
        ),
        Spec(
            "llama32-tied",
            "llama",
            "rope_scaling llama3, tied embeddings",
            heads(4, 1, tie_word_embeddings=True, max_position_embeddings=512),
            rope={**LLAMA3_ROPE, "factor": 32.0},
            dtype="bfloat16",
            tokens=96,
        ),
        Spec(
            "llama31-v5",
            "llama",
            "rope_parameters and dtype as transformers 5 writes them, eos list",
            heads(2, 1, max_position_embeddings=512, eos_token_id=[EOS, 3]),
            rope=LLAMA3_ROPE,
            spelling="v5",
        ),
        Spec(
            "llama-rope-linear",
            "llama",
            "rope_scaling linear",
            heads(2, 1),
            rope_type_key="type",
            rope={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        ),
        Spec(
            "llama-rope-dynamic",
            "llama",
            "rope_scaling dynamic, within max_position_embeddings: plain RoPE",
            heads(2, 1),
            rope_type_key="type",
            rope={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        ),
        Spec(
            "llama-rope-yarn",
            "llama",
            "rope_scaling yarn with every parameter given",
            heads(2, 1, max_position_embeddings=128),
            tokens=96,
            rope={**YARN_ROPE, "beta_fast": 24.0, "beta_slow": 2.0, "attention_factor": 1.25},
        ),
        Spec("llama-hd80", "llama", "head_dim 80", heads(2, 1, 80), dtype="bfloat16"),
        Spec("llama-hd96", "llama", "head_dim 96", heads(2, 1, 96), dtype="bfloat16"),
        Spec("llama-hd128", "llama", "head_dim 128", heads(2, 1, 128), dtype="bfloat16"),
        Spec("llama-hd192", "llama", "head_dim 192", heads(2, 1, 192), dtype="bfloat16"),
        Spec("llama-hd256", "llama", "head_dim 256", heads(2, 1, 256), dtype="bfloat16"),
        Spec("llama-hd80-fp32", "llama", "head_dim 80 in fp32", heads(2, 1, 80)),
        Spec("llama-hd96-fp32", "llama", "head_dim 96 in fp32", heads(2, 1, 96)),
        Spec("llama-hd128-fp32", "llama", "head_dim 128 in fp32", heads(2, 1, 128)),
        Spec("llama-hd192-fp32", "llama", "head_dim 192 in fp32", heads(2, 1, 192, num_hidden_layers=1)),
        Spec("llama-hd256-fp32", "llama", "head_dim 256 in fp32", heads(2, 1, 256, num_hidden_layers=1)),
        Spec("llama-bf16", "llama", "bf16 weights", heads(4, 2), dtype="bfloat16", tokens=96),
        Spec("llama-fp16", "llama", "fp16 weights", heads(2, 1), dtype="float16", tokens=96),
        Spec("llama-sharded", "llama", "three shards and an index", heads(2, 1), shard_size="60KB"),
        Spec(
            "llama-one-layer",
            "llama",
            "one layer, one token: no key but its own",
            heads(2, 2, num_hidden_layers=1),
            tokens=1,
        ),
    ]
    mistral = [
        Spec(
            "mistral-window",
            "mistral",
            "sliding window of 16 under a prompt of 72",
            heads(4, 2, sliding_window=16),
            tokens=72,
        ),
        Spec(
            "mistral-window-bf16",
            "mistral",
            "sliding window of 16 in bf16, sharded",
            heads(4, 1, sliding_window=16),
            dtype="bfloat16",
            tokens=72,
            shard_size="60KB",
        ),
        Spec(
            "mistral-v03",
            "mistral",
            "sliding_window null",
            heads(2, 1, sliding_window=None, rms_norm_eps=1e-5),
            rope={"rope_type": "default", "rope_theta": 1000000.0},
            tokens=72,
        ),
    ]
    qwen2 = [
        Spec(
            "qwen2",
            "qwen2",
            "QKV bias, tied",
            heads(2, 1, tie_word_embeddings=True),
            tokens=72,
            rope={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        Spec(
            "qwen2-bf16",
            "qwen2",
            "QKV bias in bf16, untied, no head_dim key, a window that is off",
            {
                "hidden_size": 128,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "num_hidden_layers": 1,
                "use_sliding_window": False,
                "sliding_window": 16,
                "max_window_layers": 1,
            },
            dtype="bfloat16",
            tokens=72,
        ),
        Spec(
            "qwen2-window",
            "qwen2",
            "use_sliding_window: layers from max_window_layers on",
            heads(2, 1, num_hidden_layers=3, use_sliding_window=True, sliding_window=16, max_window_layers=1),
            tokens=72,
        ),
        Spec(
            "qwen2-window-v5",
            "qwen2",
            "the same by layer_types",
            spelling="v5",
            tokens=72,
            config=heads(
                2,
                1,
                num_hidden_layers=3,
                use_sliding_window=True,
                sliding_window=16,
                max_window_layers=1,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            ),
        ),
        Spec(
            "qwen2-yarn",
            "qwen2",
            "rope_scaling yarn as Qwen's model cards say",
            heads(2, 1, max_position_embeddings=128),
            rope=YARN_ROPE,
            rope_type_key="type",
            tokens=96,
        ),
    ]
    qwen3 = [
        Spec(
            "qwen3",
            "qwen3",
            "QK norm, tied",
            heads(4, 2, tie_word_embeddings=True),
            tokens=72,
            rope={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        Spec(
            "qwen3-hd128-bf16",
            "qwen3",
            "QK norm, head_dim 128, bf16, untied",
            heads(2, 1, 128),
            dtype="bfloat16",
            tokens=72,
        ),
        Spec("qwen3-biases-v5", "qwen3", "QK norm and attention_bias", heads(2, 1, attention_bias=True), spelling="v5"),
    ]
    return llama + mistral + qwen2 + qwen3


FAMILIES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}


def make_config(spec: Spec):
    values = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "rope_parameters": spec.rope or {"rope_type": "default", "rope_theta": 10000.0},
        **spec.config,
    }
    config = FAMILIES[spec.family][0](**values)
    config.dtype = spec.dtype
    return config


@torch.no_grad()
def randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Scales: embeddings 1, matrices 1.6 / sqrt(fan in), norms 1 +- 0.25, biases 0.3."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            parameter.copy_(1 + 0.25 * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        elif "embed_tokens" in name:
            parameter.copy_(noise if not model.config.tie_word_embeddings else 0.5 * noise)
        else:
            gain = 2.5 if "lm_head" in name else 1.6
            parameter.copy_(gain / parameter.shape[1] ** 0.5 * noise)


def cast_parameters(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Unlike model.to(dtype), leaves the buffers alone: RoPE's frequencies stay float32, as from_pretrained keeps them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def logits_of(model, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def greedy(model, ids: list[int]) -> tuple[list[int], list[float]]:
    ids, new, margins = list(ids), [], []
    for _ in range(CONTINUATION):
        top = logits_of(model, ids)[-1].topk(2)
        new.append(int(top.indices[0]))
        margins.append(round(float(top.values[0] - top.values[1]), 6))
        ids.append(new[-1])
    return new, margins


def acceptable(new: list[int], margins: list[float]) -> bool:
    return min(margins) >= MIN_MARGIN and len(set(new)) >= 10 and not set(new) & {BOS, EOS, 3}


def to_hub_spelling(path: pathlib.Path, spec: Spec) -> None:
    config = json.loads(path.read_text())
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    rope_type = rope.pop("rope_type")
    config["rope_scaling"] = None if rope_type == "default" else {**rope, spec.rope_type_key: rope_type}
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    if "head_dim" not in spec.config:
        config.pop("head_dim", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load(folder: pathlib.Path, dtype: torch.dtype):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def write_model(spec: Spec, folder: pathlib.Path) -> None:
    for seed in range(MAX_SEEDS):
        generator = torch.Generator().manual_seed(seed)
        config = make_config(spec)
        config._attn_implementation = "eager"
        made = FAMILIES[spec.family][1](config).eval()
        randomize(made, generator)
        cast_parameters(made, DTYPES[spec.dtype])
        ids = [BOS] + torch.randint(4, VOCAB, (spec.tokens - 1,), generator=generator).tolist()
        native = logits_of(made, ids)
        cast_parameters(made, torch.float32)
        new, margins = greedy(made, ids)
        if acceptable(new, margins):
            break
    else:
        raise SystemExit(f"{spec.name}: no seed below {MAX_SEEDS} gives a lively continuation")
    logits = logits_of(made, ids)

    shutil.rmtree(folder, ignore_errors=True)
    cast_parameters(made, DTYPES[spec.dtype])
    made.config.dtype = DTYPES[spec.dtype]
    made.generation_config = transformers.GenerationConfig(bos_token_id=BOS, eos_token_id=config.eos_token_id)
    made.save_pretrained(folder, max_shard_size=spec.shard_size or "1GB")
    if spec.spelling == "hub":
        to_hub_spelling(folder / "config.json", spec)
    again = logits_of(load(folder, torch.float32), ids)
    if not torch.equal(again, logits):
        raise SystemExit(f"{spec.name}: reading the folder back changes the logits by {(again - logits).abs().max()}")

    tensors = {"logits": logits.float().contiguous()}
    if spec.dtype != "float32":
        tensors["logits_native"] = native.contiguous()
    save_file(tensors, folder / "golden.safetensors")
    golden = {
        "name": spec.name,
        "shows": spec.shows,
        "weights_dtype": spec.dtype,
        "seed": seed,
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "input_ids": ids,
        "greedy_ids": new,
        "greedy_margins": margins,
    }
    text = json.dumps(golden, indent=1)
    for key in ("input_ids", "greedy_ids", "greedy_margins"):
        spread = json.dumps({key: golden[key]}, indent=1)[2:-2]
        text = text.replace(spread, f" {json.dumps(key)}: {json.dumps(golden[key])}")
    (folder / "golden.json").write_text(text + "\n")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(
        f"{spec.name:26} seed {seed:3}  |logit| <= {logits.abs().max():5.1f}  min margin {min(margins):.3f}  "
        f"{len(set(new)):2} distinct  {size / 1024:6.0f} KiB  {len(list(folder.glob('model*.safetensors')))} file(s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("tests/golden/models"))
    parser.add_argument("--only", nargs="*", default=None, metavar="NAME")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    for spec in specs():
        if args.only is None or spec.name in args.only:
            write_model(spec, args.output / spec.name)


if __name__ == "__main__":
    main()
