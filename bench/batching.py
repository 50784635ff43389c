#!/usr/bin/env python3
"""Throughput against the number of sequences that run at once: a Markdown table and an SVG plot.

python bench/make_model.py --shape qwen2.5-0.5b --output /tmp/qwen2.5-0.5b
python bench/batching.py --model models/shakespeare-5m --model /tmp/qwen2.5-0.5b --plot docs/images/batching.svg
"""

import argparse
import json
import math
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df")


def measure(args: argparse.Namespace, model: pathlib.Path, sequences: int) -> dict:
    # At least two rounds of short batches, so that one number is not one sequence's.
    count = max(4, sequences)
    command = [args.onepass, "bench", "throughput", "--model", model, "--num-prompts", count]
    command += ["--random-input-len", args.input_len, "--random-output-len", args.output_len]
    command += ["--max-running-requests", sequences, "--kv-tokens", 2 * sequences * (args.input_len + args.output_len)]
    return json.loads(subprocess.run(map(str, [*command, "--json"]), check=True, capture_output=True, text=True).stdout)


def plot(path: pathlib.Path, sizes: list[int], series: dict[str, list[float]]) -> None:
    """Speed-up over one sequence; both axes logarithmic, to base 2."""
    width, height, left, bottom, top, right = 560, 320, 60, 46, 16, 150
    span = math.log2(sizes[-1]) or 1.0

    def x(size: float) -> float:
        return left + (width - left - right) * math.log2(size) / span

    def y(ratio: float) -> float:
        return height - bottom - (height - bottom - top) * math.log2(max(ratio, 1.0)) / span

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for size in sizes:
        parts.append(
            f'<path d="M{x(size):.1f} {top}V{height - bottom}M{left} {y(size):.1f}H{width - right}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{x(size):.1f}" y="{height - bottom + 16}" text-anchor="middle">{size}</text>')
        parts.append(f'<text x="{left - 8}" y="{y(size) + 4:.1f}" text-anchor="end">{size}x</text>')
    parts.append(
        f'<path d="M{x(1):.1f} {y(1):.1f}L{x(sizes[-1]):.1f} {y(sizes[-1]):.1f}" stroke="#999" stroke-dasharray="4 4"/>'
    )
    for (name, speeds), colour in zip(series.items(), COLOURS, strict=False):
        points = [(x(size), y(speed / speeds[0])) for size, speed in zip(sizes, speeds, strict=True)]
        line = "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in points]
        parts.append(f'<text x="{points[-1][0] + 8:.1f}" y="{points[-1][1] + 4:.1f}" fill="{colour}">{name}</text>')
    middle = left + (width - left - right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{height - 8}" text-anchor="middle">sequences at once</text>')
    parts.append(f'<text x="14" y="{height / 2:.1f}" transform="rotate(-90 14 {height / 2:.1f})" text-anchor="middle">')
    parts.append("new tokens a second, over one sequence</text></svg>")
    path.write_text("\n".join(parts) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, action="append", required=True)
    parser.add_argument("--onepass", type=pathlib.Path, default=ROOT / "build/release/bin/onepass")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--input-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--plot", type=pathlib.Path)
    args = parser.parse_args()
    print(
        "| model | sequences | new tokens a second | over one | between two tokens |\n| --- | --- | --- | --- | --- |"
    )
    series: dict[str, list[float]] = {}
    for model in args.model:
        speeds = series.setdefault(model.name, [])
        for sequences in args.sequences:
            result = measure(args, model, sequences)
            speeds.append(result["output_throughput"])
            row = (model.name, sequences, f"{speeds[-1]:.1f}", f"{speeds[-1] / speeds[0]:.1f}x")
            print("|", " | ".join(map(str, row)), f"| {result['median_itl_ms']:.2f} ms |", flush=True)
    if args.plot:
        plot(args.plot, args.sequences, series)


if __name__ == "__main__":
    main()
