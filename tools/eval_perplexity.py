#!/usr/bin/env python3
"""Perplexity of a Hugging Face model folder on a text, computed by `transformers`: what `onepass perplexity` is held against.

The rule, in full, so that two programs can agree to the last digits:
  1. The whole file is one string (UTF-8), encoded once without special tokens: t_1 .. t_n.
  2. Non-overlapping windows of `context` tokens (default: max_position_embeddings): BOS, then the next context - 1 ids;
     the last window is shorter. Nothing is carried from one window to the next.
  3. Every token but BOS counts, once: nll_i = -log p(t_i | BOS and the tokens before it in its window), natural logarithm.
  4. perplexity = exp(sum nll / n). Per byte: sum nll / bytes of the file.
Weights are upcast to float32 and computed in float32, unless --dtype says otherwise.

  python tools/eval_perplexity.py --model models/shakespeare-5m --file TEXT [--context N] [--json]
"""

import argparse
import json
import math
import pathlib

import torch
import transformers


def windows(ids: list[int], bos: int, context: int) -> list[list[int]]:
    return [[bos, *ids[i : i + context - 1]] for i in range(0, len(ids), context - 1)]


@torch.no_grad()
def token_nll(model, ids: list[int], bos: int, context: int) -> torch.Tensor:
    """Negative log likelihoods in nats of every id, [len(ids)] float32 on the CPU."""
    parts = []
    for window in windows(ids, bos, context):
        inputs = torch.tensor([window], device=model.device)
        log_probs = model(inputs, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        parts.append(-log_probs.gather(1, inputs[0, 1:, None])[:, 0].cpu())
    return torch.cat(parts)


def evaluate(folder: pathlib.Path, text: bytes, context: int | None = None, dtype=torch.float32, device="cpu") -> dict:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    model = model.to(device).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    context = context or model.config.max_position_embeddings
    ids = tokenizer.encode(text.decode(), add_special_tokens=False)
    total = float(token_nll(model, ids, tokenizer.bos_token_id, context).double().sum())
    return {
        "tokens": len(ids),
        "bytes": len(text),
        "context": context,
        "nll_per_token": total / len(ids),
        "nll_per_byte": total / len(text),
        "bits_per_byte": total / len(text) / math.log(2),
        "perplexity": math.exp(total / len(ids)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--file", type=pathlib.Path, required=True)
    parser.add_argument("--held-out", action="store_true", help="only the part that train_demo_model.py held out")
    parser.add_argument("--context", type=int, default=None)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    text = args.file.read_bytes()
    if args.held_out:
        text = text[len(text) * 9 // 10 :]
    result = evaluate(args.model, text, args.context, getattr(torch, args.dtype))
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print(
            f"perplexity {result['perplexity']:.4f}  nll/token {result['nll_per_token']:.5f}  nll/byte "
            f"{result['nll_per_byte']:.5f}  ({result['tokens']} tokens, {result['bytes']} bytes, windows of {result['context']})"
        )


if __name__ == "__main__":
    main()
