"""What others reach on an H100 80GB HBM3 (SXM, 700 W), bf16, measured on 2026-11-24 with torch 2.11, cuDNN 9.19 and
FlashAttention-3 of August 2026, by the names of onepass bench attention's shapes; what onepass aims at, and how a shape is judged by
it. TFLOP/s (causal counts half of the square); decode: GB/s of K and V. A leaning post: cards differ by some percent, so the peers of
the same run come first.
"""

from typing import NamedTuple

_LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)


def _rows(pattern: str, keys, values) -> dict:
    return {pattern.format(key): value for key, value in zip(keys, values, strict=True)}


FA3 = {
    **_rows("prefill causal {}", _LENGTHS, (210, 436, 562, 614, 646, 663)),
    **_rows("prefill full {}", _LENGTHS, (493, 595, 641, 662, 647, 683)),
    **_rows("prefill causal {}, 32/8", (1024, 4096, 16384), (446, 617, 653)),
    **_rows("extend 4096+1024, b4, page {}", (1, 16, 64, 128), (556, 546, 546, 629)),
    "extend 0+4096, b4, page 64": 531,
    "extend 16384+512, b4, page 64": 564,
    "extend 512+128, b16, page 64": 264,
    "extend 32768+2048, b1, page 64": 586,
    **_rows("decode b32 ctx 8192, page {}", (1, 16, 64, 128, 256), (2914, 2950, 2956, 2963, 2979)),
    "decode b128 ctx 4096, page 64": 3011,
    "decode b256 ctx 1024, page 64": 2854,
    "decode b64 ctx 2048, page 64": 2825,
    **_rows("decode b1 ctx {}, page 64", (1024, 4096, 16384, 65536), (321, 995, 1950, 2636)),
    "decode b4 ctx 2048, page 64": 1533,
    "decode b8 ctx 1024, page 64": 1550,
    "decode b8 ctx 4096, page 64": 2413,
    "decode b16 ctx 4096, page 64": 2720,
    "decode b32 ctx 1024, page 64": 2338,
    "decode b64 ctx 512, page 64": 2237,
}

CUDNN = {
    **_rows("prefill causal {}", _LENGTHS, (320, 428, 495, 535, 557, 566)),
    **_rows("prefill full {}", _LENGTHS, (521, 576, 609, 616, 616, 612)),
    **_rows("prefill causal {}, 32/8", (1024, 4096, 16384), (451, 540, 583)),
}

EARLIER = {"FA3": FA3, "cuDNN": CUDNN}


class Goal(NamedTuple):
    """`factor` times what the best of `peers` reaches on the shape; "copy": times the bandwidth of a copy; "contiguous": times what
    onepass's kernel reaches where K and V are not in pages."""

    factor: float
    peers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.factor:.2f}x " + "/".join(self.peers)


_FA3 = ("FA3",)
_BETTER = ("FA3", "cuDNN")
_COPY = ("copy",)

_GOALS = {
    **{f"prefill causal {s}": Goal(1.05, _BETTER) for s in _LENGTHS},
    **{f"prefill full {s}": Goal(1.03, _BETTER) for s in _LENGTHS},
    **{f"prefill causal {s}, 32/8": Goal(1.05, _BETTER) for s in (1024, 4096, 16384)},
    **{f"prefill causal 4096, hd {dim}": Goal(1.00, _BETTER) for dim in (64, 256)},
    **{name: Goal(1.10, _FA3) for name in FA3 if name.startswith("extend")},
    # Decoding from a few KV heads' worth of memory: launches and latency count.
    **{
        f"decode b1 ctx {context}, page 64": Goal(factor, _FA3)
        for context, factor in ((1024, 1.8), (4096, 1.5), (16384, 1.3), (65536, 1.1))
    },
    **{
        f"decode b{batch} ctx {context}, page 64": Goal(1.25, _FA3)
        for batch, context in ((4, 2048), (8, 1024), (8, 4096), (32, 1024), (64, 512))
    },
    # K and V of 256 MB or more.
    **_rows("decode b32 ctx 8192, page {}", (1, 16, 64, 128), (Goal(f, _COPY) for f in (0.94, 0.97, 0.97, 0.97))),
    **{
        f"decode b{batch} ctx {context}, page 64": Goal(0.97, _COPY)
        for batch, context in ((128, 4096), (256, 1024), (64, 2048), (16, 4096))
    },
    **{f"decode b32 ctx 4096, page 64, hd {dim}": Goal(0.95, _COPY) for dim in (64, 256)},
}
_PAGED = Goal(0.97, ("contiguous",))
_PORTABLE = {
    "prefill causal 4096": Goal(1.00, ("FA2",)),
    "decode b32 ctx 8192, page 64": Goal(0.90, _COPY),
}


def goals(name: str, kernel: str) -> list[Goal]:
    """Those of a shape, by its name, and of one of onepass's kernels."""
    if kernel == "portable":
        return [_PORTABLE[name]] if name in _PORTABLE else []
    found = [_GOALS[name]] if name in _GOALS else []
    return [*found, _PAGED] if name.startswith("extend") and name.endswith("page 64") else found


def rate(shape: dict, microseconds: float) -> float:
    """TFLOP/s, for decoding GB/s of K and V."""
    if shape["workload"] == "decode":
        return shape["kv_bytes"] / microseconds * 1e-3
    return shape["flop"] / microseconds * 1e-6


def verdicts(shape: dict, report: dict) -> list[tuple[str, str]]:
    """For each of the shape's targets what is aimed at, with where we stand, and "reached", "missed" or, of a wrong result, "wrong"."""
    return [_verdict(goal, shape, report) for goal in goals(shape["name"], shape["kernel"])]


def _verdict(goal: Goal, shape: dict, report: dict) -> tuple[str, str]:
    now = {name: rate(shape, side["us"]) for name, side in shape["sides"].items()}
    now["copy"] = report["copy_gb_per_s"]
    earlier = {peer: rows.get(shape["name"]) for peer, rows in EARLIER.items()}
    rates = [now.get(peer) or earlier.get(peer) for peer in goal.peers]
    if not any(rates):
        return f"{goal}:", "not measured"
    mark = "*" if any(peer not in now and earlier.get(peer) for peer in goal.peers) else ""
    ratio = now["onepass"] / max(filter(None, rates))
    result = "wrong" if "wrong" in shape else "reached" if ratio >= goal.factor else "missed"
    return f"{goal}{mark}: {ratio:.2f}x", result
