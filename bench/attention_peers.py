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
import re
import sys

PEERS = ("FA3", "cuDNN", "FA2")
ROOT = pathlib.Path(__file__).resolve().parent.parent


def has_torch() -> bool:
    try:
        return importlib.util.find_spec("torch") is not None
    except ValueError:  # what find_spec says of a module that is there as None
        return False


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message}\n")


def number(kind: type, low: float, high: float):
    """A type for argparse: from `low` to `high`, which NaN is not."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {low} to {high}, found {text}")
        return value

    return parse


def peers(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"expected {', '.join(PEERS)} or some of them, found {name}")
    return names


def pattern(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"expected a regular expression, found {text}: {error}") from None


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--onepass", type=pathlib.Path, default=ROOT / "build/release/bin/onepass")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="bfloat16")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=number(int, 1, 1024), help=f"cpu: default: {cores}")
    parser.add_argument(
        "--seconds", type=number(float, 0.01, 600), help="for each shape, side and round; default: 0.5, cuda 0.1"
    )
    parser.add_argument("--rounds", type=number(int, 1, 1000), help="default: 3, cuda 5")
    parser.add_argument(
        "--instances",
        type=number(int, 1, 16),
        help="cuda: of each side, on inputs of its own; the figure is their mean; default: 2",
    )
    library = os.environ.get("ONEPASS_ATTENTION_LIBRARY", ROOT / "build/release/lib/libonepass_attention.so")
    parser.add_argument("--library", dest="shared_object", type=pathlib.Path, help=f"cuda: default: {library}")
    parser.add_argument("--workload", choices=["all", "prefill", "extend", "decode"], help="cuda")
    parser.add_argument("--kernel", help="cuda: as of onepass bench attention")
    parser.add_argument("--shapes", type=pattern, help="cuda: those whose names this regular expression finds")
    parser.add_argument("--peers", type=peers, help=f"cuda: default: {','.join(PEERS)}")
    parser.add_argument(
        "--verbose", action="store_true", default=None, help="cuda: says why a peer does not take a shape"
    )
    parser.add_argument("--output", type=pathlib.Path, help="cuda: writes the figures there too, as JSON")
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    of_device = {
        "cpu": {"threads": cores},
        "cuda": {
            "shared_object": pathlib.Path(library),
            "workload": "all",
            "kernel": "auto",
            "shapes": re.compile(""),
            "peers": list(PEERS),
            "instances": 2,
            "verbose": False,
            "output": None,
        },
    }
    for device, defaults in of_device.items():
        for name, default in defaults.items():
            if getattr(args, name) is None:
                setattr(args, name, default)
            elif device != args.device:
                option = "library" if name == "shared_object" else name
                parser.error(f"argument --{option}: expected --device {device}, found {args.device}")
    args.seconds = args.seconds or (0.1 if on_gpu else 0.5)
    args.rounds = args.rounds or (5 if on_gpu else 3)
    if not has_torch():
        sys.exit("attention_peers.py: torch: expected it to be installed (pip install torch), found none")
    if on_gpu:
        import attention_peers_cuda  # needs a GPU

        return attention_peers_cuda.main(args)
    import attention_peers_cpu

    return attention_peers_cpu.main(args)


if __name__ == "__main__":
    main()
