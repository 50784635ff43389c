#!/usr/bin/env python3
"""The attention kernels beside PyTorch's scaled_dot_product_attention, shape by shape, in turns, on this machine.

    python bench/attention_peers.py [--rounds 3]
    python bench/attention_peers.py --device cuda [--workload decode] [--kernel auto] [--output FILE.json]

On the GPU the peers are PyTorch's cuDNN and FA2 backends and FlashAttention-3, in any of the builds that attention_fa3.py knows, and
each shape is judged by its target (attention_peers_cuda.py).
On the processor both are fed cold caches (they cycle through copies of K and V). PyTorch gets K and V as it likes them, contiguous and per head; for
grouped heads the better of enable_gqa and K and V repeated beforehand, at no charge. Needs torch from pip.
"""

import argparse
import importlib.util
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def has_torch() -> bool:
    try:
        return importlib.util.find_spec("torch") is not None
    except ValueError:  # what find_spec says of a module that is there as None
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--onepass", type=pathlib.Path, default=ROOT / "build/release/bin/onepass")
    library = os.environ.get("ONEPASS_ATTENTION_LIBRARY", ROOT / "build/release/lib/libonepass_attention.so")
    parser.add_argument(
        "--library", dest="shared_object", type=pathlib.Path, default=library, help="cuda: default: %(default)s"
    )
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, help="for each shape, side and round; default: 0.5, cuda 0.1")
    parser.add_argument("--rounds", type=int, help="default: 3, cuda 5")
    parser.add_argument("--workload", choices=["all", "prefill", "extend", "decode"], default="all", help="cuda")
    parser.add_argument("--kernel", default="auto", help="cuda: as of onepass bench attention")
    parser.add_argument("--shapes", default="", help="cuda: those whose names this regular expression finds")
    parser.add_argument("--peers", default="FA3,cuDNN,FA2", help="cuda: default: %(default)s")
    parser.add_argument("--verbose", action="store_true", help="cuda: says why a peer does not take a shape")
    parser.add_argument("--output", type=pathlib.Path, help="cuda: writes the figures there too, as JSON")
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    args.seconds = args.seconds or (0.1 if on_gpu else 0.5)
    args.rounds = args.rounds or (5 if on_gpu else 3)
    if not has_torch():
        sys.exit("attention_peers.py: torch: expected it to be installed (pip install torch), found none")
    if on_gpu:
        args.peers = args.peers.split(",")
        import attention_peers_cuda  # needs a GPU

        return attention_peers_cuda.main(args)
    import attention_peers_cpu

    return attention_peers_cpu.main(args)


if __name__ == "__main__":
    main()
