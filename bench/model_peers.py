#!/usr/bin/env python3
"""A whole model beside llama.cpp: the same weights, the same lengths, in turns, on this processor.

    python bench/make_model.py --shape qwen2.5-0.5b --output /tmp/qwen2.5-0.5b
    python bench/model_peers.py --model /tmp/qwen2.5-0.5b

Needs llama-cpp-python, built for this machine: CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python
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

KV_TYPES = {"f16": 1, "bf16": 30}  # ggml_type; the Python module names not all of them
ROOT = pathlib.Path(__file__).resolve().parent.parent


class LlamaCpp:
    """llama.cpp by its C API: prefill and decode of one sequence, flash attention on, K and V in bf16."""

    def __init__(self, path: pathlib.Path, threads: int, context: int, kv_type: str) -> None:
        silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(silent, None)
        self._keep = silent
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context
        params.n_batch, params.n_ubatch = max(512, context), 512
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = params.type_v = KV_TYPES[kv_type]
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.model or not self.context:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def decode(self, tokens: list[int]) -> None:
        """Logits of the last token alone, as the default of llama_batch_get_one says."""
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens))) != 0:
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_synchronize(self.context)

    def measure(self, input_len: int, output_len: int) -> tuple[float, float]:
        """Seconds of the prefill, and of the median decode step."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        prompt = [random.randrange(self.vocab_size) for _ in range(input_len)]
        start = time.perf_counter()
        self.decode(prompt)
        prefill, steps = time.perf_counter() - start, []
        for _ in range(output_len - 1):
            start = time.perf_counter()
            self.decode([random.randrange(self.vocab_size)])
            steps.append(time.perf_counter() - start)
        return prefill, statistics.median(steps)


def onepass(args: argparse.Namespace) -> dict:
    command = [args.onepass, "bench", "latency", "--model", args.model, "--input-len", args.input_len, "--output-len"]
    command += [args.output_len, "--threads", args.threads, "--iterations", 3, "--peaks", "--json"]
    return json.loads(subprocess.run(map(str, command), check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="a folder of make_model.py")
    parser.add_argument("--onepass", type=pathlib.Path, default=ROOT / "build/release/bin/onepass")
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kv-type", choices=KV_TYPES, default="f16", help="llama.cpp's K and V; f16 is its default")
    args = parser.parse_args()
    if llama_cpp is None:
        sys.exit("model_peers.py: llama_cpp: expected it to be installed (pip install llama-cpp-python), found none")
    peer = LlamaCpp(args.model / "model.gguf", args.threads, args.input_len + args.output_len + 64, args.kv_type)
    peer.measure(args.input_len, 4)
    ours, theirs = [], []
    for _ in range(args.rounds):
        ours.append(onepass(args))
        theirs += [peer.measure(args.input_len, args.output_len) for _ in range(3)]

    def median(key: str) -> float:
        return statistics.median(result[key] for result in ours)

    rows = (
        (
            "prefill",
            median("prefill_latency_ms"),
            statistics.median(prefill for prefill, _ in theirs) * 1e3,
            args.input_len,
        ),
        ("decode", median("decode_latency_ms"), statistics.median(step for _, step in theirs) * 1e3, 1),
    )
    print(
        f"{args.threads} threads, input {args.input_len}, output {args.output_len}; machine: "
        f"{median('peak_dram_read_gb_per_s'):.1f} GB/s DRAM read, {median('peak_matrix_gflop_per_s'):.0f} GFLOP/s"
    )
    print(
        f"onepass: prefill {median('prefill_of_peak'):.1%} of the rate, decode {median('decode_of_bandwidth'):.1%} of "
        f"the bandwidth, load {median('load_seconds'):.3f} s"
    )
    print(f"{'':8} {'onepass':>20} {'llama.cpp':>20} {'ratio':>7}")
    for name, our_ms, their_ms, tokens in rows:
        cells = [f"{ms:8.2f} ms {tokens / ms * 1e3:6.1f} t/s" for ms in (our_ms, their_ms)]
        print(f"{name:8} {cells[0]:>20} {cells[1]:>20} {their_ms / our_ms:6.2f}x")


if __name__ == "__main__":
    main()
