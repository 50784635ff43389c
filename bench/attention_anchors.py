"""What others reach on an H100 80GB HBM3 (SXM, 700 W), bf16, measured on 2026-11-24 with torch 2.11, cuDNN 9.19 and
FlashAttention-3 of August 2026, by the names of onepass bench attention's shapes; and what onepass aims at. TFLOP/s (causal counts half
of the square); decode: GB/s of K and V. A leaning post: cards differ by some percent, so the peers of the same run come first.
"""

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

# Times FA3's figure, in decoding where launches and latency count.
_DECODE_FACTORS = {
    "decode b1 ctx 1024, page 64": 1.8,
    "decode b1 ctx 4096, page 64": 1.5,
    "decode b1 ctx 16384, page 64": 1.3,
    "decode b1 ctx 65536, page 64": 1.1,
    "decode b4 ctx 2048, page 64": 1.25,
    "decode b8 ctx 1024, page 64": 1.25,
    "decode b8 ctx 4096, page 64": 1.25,
    "decode b32 ctx 1024, page 64": 1.25,
    "decode b64 ctx 512, page 64": 1.25,
}

# Of the bandwidth of a copy, where K and V are 256 MB or more.
_OF_COPY = {
    **_rows("decode b32 ctx 8192, page {}", (1, 16, 64, 128), (0.94, 0.97, 0.97, 0.97)),
    "decode b128 ctx 4096, page 64": 0.97,
    "decode b256 ctx 1024, page 64": 0.97,
    "decode b64 ctx 2048, page 64": 0.97,
    "decode b32 ctx 4096, page 64, hd 64": 0.95,
    "decode b32 ctx 4096, page 64, hd 256": 0.95,
}


def target(name: str, copy_gb_per_s: float) -> float | None:
    """The figure to reach, in the unit of the shape; None where there is none."""
    if name in _OF_COPY:
        return _OF_COPY[name] * copy_gb_per_s
    if name in _DECODE_FACTORS:
        return _DECODE_FACTORS[name] * FA3[name]  # b8 ctx 4096: more than a copy's bandwidth
    if name.startswith("extend") and name in FA3:
        return 1.10 * FA3[name]
    if name in FA3 and name.startswith("prefill"):
        return (1.03 if "full" in name else 1.05) * max(FA3[name], CUDNN[name])
    return None
