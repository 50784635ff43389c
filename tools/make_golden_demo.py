#!/usr/bin/env python3
"""Writes tests/golden/demo: what `transformers` makes of the bundled models, for the engine to reproduce.

eval.txt            a few thousand tokens that the demo model itself wrote (temperature 1, seeded): stands in for the held-out text,
                    which stays out of the repository. Kept once written; --rewrite-text draws it anew.
MODEL.json          perplexity of eval.txt by the rule of eval_perplexity.py, for float32 and bf16 compute, two window lengths;
                    the greedy continuation of a prompt with its top-2 margins (float32)
MODEL.safetensors   input_ids  [tokens] int32: eval.txt encoded without special tokens
                    nll        [tokens] float32: nats, windows of max_position_embeddings, float32 compute on the bf16 weights

python tools/make_golden_demo.py [--rewrite-text]
"""

import argparse
import json
import math
import pathlib

import torch
import transformers
from eval_perplexity import token_nll
from safetensors.torch import save_file

MODELS = ("shakespeare-5m", "shakespeare-1m")
PROMPTS = ("ROMEO:\n", "KING RICHARD III:\n", "First Citizen:\n", "PROSPERO:\n")
TOKENS_EACH = 800
SHORT_WINDOW = 128
GREEDY_PROMPT, GREEDY_TOKENS = "ROMEO:", 64


def load(folder: pathlib.Path, dtype: torch.dtype):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def write_text(folder: pathlib.Path, path: pathlib.Path) -> None:
    model, tokenizer = load(folder, torch.float32), transformers.AutoTokenizer.from_pretrained(folder)
    parts = []
    for seed, prompt in enumerate(PROMPTS):
        torch.manual_seed(seed)
        ids = torch.tensor([tokenizer.encode(prompt)])
        out = model.generate(
            ids, max_new_tokens=TOKENS_EACH, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, suppress_tokens=[0, 1]
        )
        parts.append(tokenizer.decode(out[0], skip_special_tokens=True).strip())
    # A cut token may be half a character; what is committed is valid UTF-8.
    path.write_text("\n\n".join(parts).replace("\ufffd", "") + "\n")


@torch.no_grad()
def greedy(model, ids: list[int]) -> tuple[list[int], list[float]]:
    new, margins = [], []
    for _ in range(GREEDY_TOKENS):
        top = model(torch.tensor([ids + new]), use_cache=False).logits[0, -1].topk(2)
        new.append(int(top.indices[0]))
        margins.append(round(float(top.values[0] - top.values[1]), 5))
    return new, margins


def write_golden(folder: pathlib.Path, text: str, output: pathlib.Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(text, add_special_tokens=False)
    if tokenizer.decode(ids) != text:
        raise SystemExit(f"{folder}: eval.txt does not survive encoding and decoding")
    model = load(folder, torch.float32)
    bos, context = tokenizer.bos_token_id, model.config.max_position_embeddings
    nll = token_nll(model, ids, bos, context)
    prompt_ids = tokenizer.encode(GREEDY_PROMPT)
    new, margins = greedy(model, prompt_ids)
    short = token_nll(model, ids, bos, SHORT_WINDOW)
    native = token_nll(load(folder, torch.bfloat16), ids, bos, context)

    def perplexity(values: torch.Tensor) -> float:
        return math.exp(float(values.double().mean()))

    golden = {
        "model": folder.name,
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "tokens": len(ids),
        "bytes": len(text.encode()),
        "context": context,
        "perplexity": perplexity(nll),
        "perplexity_bf16_compute": perplexity(native),
        "short_context": SHORT_WINDOW,
        "perplexity_short_context": perplexity(short),
        "greedy_prompt": GREEDY_PROMPT,
        "greedy_prompt_ids": prompt_ids,
        "greedy_ids": new,
        "greedy_margins": margins,
        "greedy_text": tokenizer.decode(new),
    }
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
    (output / f"{folder.name}.json").write_text("{\n" + lines + "\n}\n")
    save_file({"input_ids": torch.tensor(ids, dtype=torch.int32), "nll": nll}, output / f"{folder.name}.safetensors")
    (output / f"{folder.name}.safetensors").chmod(0o644)
    print(
        f"{folder.name}: {len(ids)} tokens, perplexity {golden['perplexity']:.4f} (bf16 compute "
        f"{golden['perplexity_bf16_compute']:.4f}, windows of {SHORT_WINDOW} {golden['perplexity_short_context']:.4f}), "
        f"smallest greedy margin {min(margins)}"
    )


def main() -> None:
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=pathlib.Path, default=root / "models")
    parser.add_argument("--output", type=pathlib.Path, default=root / "tests/golden/demo")
    parser.add_argument("--rewrite-text", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "eval.txt"
    if args.rewrite_text or not path.exists():
        write_text(args.models / MODELS[0], path)
    for name in MODELS:
        write_golden(args.models / name, path.read_text(), args.output)


if __name__ == "__main__":
    main()
