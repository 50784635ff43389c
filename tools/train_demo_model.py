#!/usr/bin/env python3
"""Trains the bundled models: a byte-level BPE tokenizer and a small Llama on one text file, saved as a Hugging Face folder.

  python tools/train_demo_model.py --preset demo  --text tinyshakespeare.txt --output models/shakespeare-5m
  python tools/train_demo_model.py --preset draft --text tinyshakespeare.txt --output models/shakespeare-1m \
      --tokenizer models/shakespeare-5m --teacher models/shakespeare-5m

The last tenth of the text (bytes) is held out: neither the tokenizer nor the weights see it. A megabyte is little, so
everything here is against overfitting: dropout, weight decay, an exponential average of the weights, windows at random
offsets, BPE-dropout (Provilkov et al., 2020: merges skipped at random while encoding, so that each epoch sees other
tokens for the same words; its share falls linearly to nothing, as inference never skips merges), and, for the small
model, distillation from the large one. Training stops when the held-out loss of the average has not fallen for
`patience` evaluations, and the best one is kept.
"""

import argparse
import json
import math
import pathlib
import time

import torch
import torch.nn.functional as F
import transformers
from demo_folder import BOS_TOKEN, EOS_TOKEN, export, model_card
from demo_llama import Llama
from eval_perplexity import evaluate, windows
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

# Llama 3's pre-tokenizer.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# The settings of the bundled models. What moved the held-out loss (nats a byte, 2500 steps, about 4.7M parameters, one run each; the
# first row is the start: 6 layers of 256, 1024 entries, dropout 0.3, weight decay 0.5, BPE-dropout 0.1):
#   1.379 start | 1.415 no BPE-dropout | 1.383 BPE-dropout 0.2 | 1.369 2048 entries | 1.390 weight decay 0.1 | 1.369 weight decay 1
#   1.375 dropout 0.2 | 1.442 dropout 0.4 | 1.426 4 layers of 320 | 1.493 3 layers of 384 | 1.387 and 1.380 learning rate 1e-3 and 4e-3
#   2048 entries and weight decay 2: 1.347, 1.342, 1.349 for dropout 0.2, 0.25, 0.3; with 7 layers and weight decay 1.5, DEMO: 1.337
# For the small one: 1.406 without a teacher, 1.355 with half of its loss the teacher's, 1.339 with nine tenths.
COMMON = {
    "vocab_size": 2048,
    "context": 1024,
    "rope_theta": 10000.0,
    "norm_eps": 1e-5,
    "batch": 16,
    "warmup": 100,
    "min_learning_rate": 0.05,
    "beta2": 0.99,
    "ema": 0.995,
    "bpe_dropout": 0.1,
    "encodings": 24,
    "speech_starts": 0.25,
    "eval_every": 50,
    "patience": 12,
    "seed": 1,
}
DEMO = {
    "hidden": 256,
    "layers": 7,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 64,
    "intermediate": 640,
    "steps": 2500,
    "learning_rate": 2e-3,
    "weight_decay": 1.5,
    "dropout": 0.25,
    "distill": 0.0,
}
DRAFT = {
    "hidden": 192,
    "layers": 3,
    "heads": 3,
    "kv_heads": 1,
    "head_dim": 64,
    "intermediate": 448,
    "steps": 4000,
    "learning_rate": 3e-3,
    "weight_decay": 0.5,
    "dropout": 0.05,
    "distill": 0.9,
}
PRESETS = {"demo": COMMON | DEMO, "draft": COMMON | DRAFT}


# --- tokenizer -------------------------------------------------------------------------------------------------------


def train_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS_TOKEN, EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    bos = tokenizer.token_to_id(BOS_TOKEN)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS_TOKEN} $A", pair=f"{BOS_TOKEN} $A {BOS_TOKEN}:1 $B:1", special_tokens=[(BOS_TOKEN, bos)]
            ),
        ]
    )
    return tokenizer


def encode_with_dropout(tokenizer: Tokenizer, text: str, dropout: float, count: int) -> list[list[int]]:
    noisy = Tokenizer.from_str(tokenizer.to_str())
    noisy.model.dropout = dropout
    return [e.ids for e in noisy.encode_batch([text] * count, add_special_tokens=False)]


# --- data --------------------------------------------------------------------------------------------------------------


class Windows:
    """Training windows on the device: BOS, then context - 1 ids from a random offset of a random encoding."""

    def __init__(self, a, tokenizer: Tokenizer, text: str, device: str):
        self.a = a
        self.bos = tokenizer.token_to_id(BOS_TOKEN)
        encodings = [tokenizer.encode(text, add_special_tokens=False).ids]
        if a.bpe_dropout > 0:
            encodings += encode_with_dropout(tokenizer, text, a.bpe_dropout, a.encodings)
        self.clean_tokens = len(encodings[0])
        # Ids after which a speech begins: those whose text ends in a blank line.
        ends = [tokenizer.decode([i]).endswith("\n\n") for i in range(tokenizer.get_vocab_size())]
        self.data, self.starts = [], []
        for ids in encodings:
            self.starts.append([i + 1 for i, t in enumerate(ids[: -a.context]) if ends[t]])
            self.data.append(torch.tensor(ids, dtype=torch.long, device=device))
        self.generator = torch.Generator().manual_seed(a.seed)

    def draw(self, progress: float):
        """[batch, context] inputs and the [batch, context - 1] targets of their first context - 1 positions."""
        a = self.a
        rows = []
        for clean, which, aligned, where in torch.rand(a.batch, 4, generator=self.generator).tolist():
            pick = 0 if clean < progress or len(self.data) == 1 else 1 + int(which * (len(self.data) - 1))
            ids, starts = self.data[pick], self.starts[pick]
            if aligned < a.speech_starts and starts:
                offset = starts[int(where * len(starts))]
            else:
                offset = int(where * (len(ids) - a.context))
            rows.append(ids[offset : offset + a.context - 1])
        targets = torch.stack(rows)
        return F.pad(targets[:, :-1], (1, 0), value=self.bos), targets


@torch.no_grad()
def held_out_loss(model, ids: list[int], bos: int, context: int, device: str) -> float:
    """Nats per token by the rule of eval_perplexity.py."""
    model.eval()
    rows = windows(ids, bos, context)
    full = torch.tensor([r for r in rows if len(r) == context], device=device)
    total = 0.0
    for batch in [*full.split(16), *(torch.tensor([r], device=device) for r in rows if len(r) < context)]:
        if len(batch):
            logits = model(batch[:, :-1])
            total += float(F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum"))
    model.train()
    return total / len(ids)


# --- training ------------------------------------------------------------------------------------------------------------


def train(a: argparse.Namespace, tokenizer: Tokenizer, text: str, held_out: str, device: str):
    torch.manual_seed(a.seed)
    data = Windows(a, tokenizer, text, device)
    held_out_ids = tokenizer.encode(held_out, add_special_tokens=False).ids
    vocab = tokenizer.get_vocab_size()
    model, average = Llama(a, vocab).to(device), Llama(a, vocab).to(device)
    average.load_state_dict(model.state_dict())
    teacher = None
    if a.teacher and a.distill > 0:
        teacher = transformers.AutoModelForCausalLM.from_pretrained(a.teacher, dtype=torch.bfloat16).to(device).eval()
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decayed, "weight_decay": a.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=a.learning_rate, betas=(0.9, a.beta2), fused=device == "cuda")

    best, best_state, stale, begun = math.inf, None, 0, time.time()
    log = []
    for step in range(1, a.steps + 1):
        progress = step / a.steps
        cosine = a.min_learning_rate + (1 - a.min_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = a.learning_rate * min(step / a.warmup, cosine)
        inputs, targets = data.draw(progress)
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(inputs)
        log_probs = logits.float().log_softmax(-1)
        cross_entropy = F.nll_loss(log_probs.flatten(0, 1), targets.flatten())
        loss = cross_entropy
        if teacher is not None:
            with torch.no_grad():
                wanted = teacher(inputs, use_cache=False).logits.float().log_softmax(-1)
            divergence = F.kl_div(log_probs, wanted, log_target=True, reduction="none").sum(-1).mean()
            loss = (1 - a.distill) * cross_entropy + a.distill * divergence
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            keep = min(a.ema, step / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        if step % a.eval_every == 0 or step == a.steps:
            loss_now = held_out_loss(average, held_out_ids, data.bos, a.context, device)
            per_byte = loss_now * len(held_out_ids) / len(held_out.encode())
            log.append((step, float(cross_entropy.detach()), loss_now, per_byte))
            print(
                f"step {step:5}  train {log[-1][1]:.4f}  held out {loss_now:.4f} ({per_byte:.4f} a byte)"
                f"  {time.time() - begun:.0f} s",
                flush=True,
            )
            if loss_now < best:
                best, stale = loss_now, 0
                best_state = {k: v.detach().clone() for k, v in average.state_dict().items()}
            else:
                stale += 1
                if stale >= a.patience:
                    break
    best_step = min(log, key=lambda entry: entry[2])[0]
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_tokens": data.clean_tokens,
        "steps": step,
        "best_step": best_step,
        "seconds": round(time.time() - begun),
        "log": log,
    }
    return best_state, facts


def parse() -> argparse.Namespace:
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=PRESETS, default="demo")
    preset = first.parse_known_args()[0].preset
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="demo", help="the defaults of everything below")
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", default=None, help="folder whose tokenizer.json to use; trains one without it")
    parser.add_argument("--teacher", default=None, help="folder of the model to distil from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for key, value in PRESETS[preset].items():
        parser.add_argument("--" + key.replace("_", "-"), type=type(value), default=value, help=f"default {value}")
    return parser.parse_args()


def main() -> None:
    a = parse()
    torch.set_float32_matmul_precision("high")
    transformers.logging.set_verbosity_error()
    raw = a.text.read_bytes()
    split = len(raw) * 9 // 10
    text, held_out = raw[:split].decode(), raw[split:].decode()
    if a.tokenizer:
        tokenizer = Tokenizer.from_file(str(pathlib.Path(a.tokenizer) / "tokenizer.json"))
        a.vocab_size = tokenizer.get_vocab_size()
    else:
        tokenizer = train_tokenizer(text, a.vocab_size)
    state, facts = train(a, tokenizer, text, held_out, a.device)
    export(a, tokenizer, state, a.output)
    assert set(load_file(a.output / "model.safetensors")) == set(state)
    torch.set_float32_matmul_precision("highest")
    measured = evaluate(a.output, raw[split:], device=a.device)
    hardware = torch.cuda.get_device_name() if a.device == "cuda" else "CPU"
    card = model_card(a, facts, measured, len(raw), len(raw) - split, f"one {hardware}", a.output.name)
    (a.output / "README.md").write_text(card)
    print(
        f"{a.output}: {facts['parameters']:,} parameters, best step {facts['best_step']} of {facts['steps']}, {facts['seconds']} s"
    )
    print(
        "RESULT "
        + json.dumps(
            {
                "name": a.output.name,
                **{k: facts[k] for k in ("parameters", "best_step", "steps", "seconds")},
                **measured,
            }
        )
    )


if __name__ == "__main__":
    main()
