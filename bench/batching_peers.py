#!/usr/bin/env python3
"""Many sequences at once beside llama.cpp: the same weights, the same lengths, in turns, on this processor.

    python bench/make_model.py --shape qwen2.5-0.5b --output /tmp/qwen2.5-0.5b
    python bench/batching_peers.py --model /tmp/qwen2.5-0.5b

onepass runs `bench throughput` (scheduling, sampling and detokenizing included); llama.cpp runs the loop of its
llama-batched-bench by the C API: prompts in batches of 512 tokens, then one token of every sequence a step, with no
sampling at all. Needs what model_peers.py needs.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

try:
    import llama_cpp
except ImportError:
    llama_cpp = None  # --help works all the same

ROOT = pathlib.Path(__file__).resolve().parent.parent
UBATCH = 512


class LlamaCpp:
    """llama.cpp by its C API, flash attention on, one stream of K and V for each sequence."""

    def __init__(self, path: pathlib.Path, threads: int, sequences: int, length: int) -> None:
        silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(silent, None)
        self._keep = silent
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequences * ((length + 255) // 256 * 256)
        params.n_batch = params.n_ubatch = UBATCH
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.model or not self.context:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(UBATCH, 0, 1)
        self.sequences = sequences

    def run(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """One step: (token, position, sequence, whether its logits are wanted)."""
        self.batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wants_logits) in enumerate(tokens):
            self.batch.token[i], self.batch.pos[i], self.batch.logits[i] = token, position, wants_logits
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_synchronize(self.context)

    def measure(self, input_len: int, output_len: int) -> tuple[float, float]:
        """Seconds in all, and of the median decode step."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        start, steps = time.perf_counter(), []
        prompts = [
            (random.randrange(self.vocab_size), position, sequence, position == input_len - 1)
            for sequence in range(self.sequences)
            for position in range(input_len)
        ]
        for begin in range(0, len(prompts), UBATCH):
            self.run(prompts[begin : begin + UBATCH])
        for position in range(input_len, input_len + output_len - 1):
            step = time.perf_counter()
            self.run([(random.randrange(self.vocab_size), position, i, True) for i in range(self.sequences)])
            steps.append(time.perf_counter() - step)
        return time.perf_counter() - start, statistics.median(steps)


def onepass(args: argparse.Namespace, sequences: int) -> tuple[float, float]:
    command = [args.onepass, "bench", "throughput", "--model", args.model, "--num-prompts", sequences]
    command += ["--random-input-len", args.input_len, "--random-output-len", args.output_len]
    command += ["--max-running-requests", sequences, "--threads", args.threads]
    command += ["--kv-tokens", sequences * (args.input_len + args.output_len + 64), "--json"]
    result = json.loads(subprocess.run(map(str, command), check=True, capture_output=True, text=True).stdout)
    return result["total_latency"], result["median_itl_ms"] / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="a folder of make_model.py")
    parser.add_argument("--onepass", type=pathlib.Path, default=ROOT / "build/release/bin/onepass")
    parser.add_argument("--sequences", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    if llama_cpp is None:
        sys.exit("batching_peers.py: llama_cpp: expected it to be installed (pip install llama-cpp-python), found none")
    print(f"{args.threads} threads, input {args.input_len}, output {args.output_len}: new tokens a second")
    print(f"{'sequences':>9} {'onepass':>10} {'llama.cpp':>10} {'ratio':>7}   decode steps alone")
    for sequences in args.sequences:
        peer = LlamaCpp(args.model / "model.gguf", args.threads, sequences, args.input_len + args.output_len)
        ours, theirs = [], []
        for _ in range(args.rounds):
            ours.append(onepass(args, sequences))
            theirs.append(peer.measure(args.input_len, args.output_len))
        tokens = sequences * args.output_len
        (our_total, our_step), (their_total, their_step) = (
            [statistics.median(column) for column in zip(*rows, strict=True)] for rows in (ours, theirs)
        )
        print(
            f"{sequences:9} {tokens / our_total:10.1f} {tokens / their_total:10.1f} {their_total / our_total:6.2f}x   "
            f"{sequences / our_step:.1f} against {sequences / their_step:.1f}, {their_step / our_step:.2f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
