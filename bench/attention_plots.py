#!/usr/bin/env python3
"""Draws what bench/attention_peers.py --device cuda --output FILE.json measured, as SVG.

    python bench/attention_plots.py FILE.json FOLDER

FOLDER/gpu-roofline.svg: each shape by its operations a byte, under the roofs of the same run (a copy's bandwidth, a GEMM's rate).
FOLDER/gpu-prefill.svg: causal and full prefill by the length of the prompts, beside the peers.
"""

import argparse
import html
import json
import math
import pathlib
import sys

from attention_peers import Parser

INK = "#7b8591"  # as in src/cli/svg_plot.cc: reads on white and on black
COLORS = {"onepass": "#d9534f", "FA3": "#8b6cef", "cuDNN": "#2f8fd8", "FA2": "#c98a12"}
WORKLOADS = {"prefill": "#d9534f", "extend": "#8b6cef", "decode": "#159a68"}
# What is drawn of a report, and of each of its shapes. Numbers are above 0: they are divided by, and drawn on logarithmic axes.
OF_REPORT = {"device": str, "dtype": str, "copy_gb_per_s": float, "gemm_tflop_per_s": float, "shapes": list}
OF_SHAPE = {
    "name": str,
    "workload": str,
    "kernel": str,
    "us": float,
    "flop": float,
    "kv_bytes": float,
    "peers_us": dict,
}
OF_SHAPE |= dict.fromkeys(("batch", "seqlen_q", "num_heads", "head_dim", "head_dim_v"), float)
WORDS = {str: "text", float: "a number above 0", list: "a list", dict: "an object"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 340, 64, 92, 44, 52


class Panel:
    """Axes in a picture of WIDTH x HEIGHT, `column` pictures to the right."""

    def __init__(self, column: int, title: str, x: tuple, y: tuple, log_y: bool):
        self.column, self.x, self.y, self.log_y = column, x, y, log_y
        self.parts = [f'<text x="{self.left}" y="20" font-size="14" fill="{INK}">{html.escape(title)}</text>']

    @property
    def left(self) -> float:
        return self.column * WIDTH + LEFT

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (math.log(x) - math.log(self.x[0])) / (math.log(self.x[1]) - math.log(self.x[0]))
        scale = math.log if self.log_y else float
        up = (scale(y) - scale(self.y[0])) / (scale(self.y[1]) - scale(self.y[0]))
        return self.left + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def text(self, x: float, y: float, text: str, anchor: str = "middle", color: str = INK) -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{html.escape(text)}</text>'
        )

    def line(self, points: list, color: str, extra: str = 'stroke-width="2"') -> None:
        path = "L".join("{:.1f} {:.1f}".format(*self.at(*point)) for point in points)
        self.parts.append(f'<path d="M{path}" fill="none" stroke="{color}" {extra}/>')

    def dot(self, x: float, y: float, color: str, title: str) -> None:
        px, py = self.at(x, y)
        dot = f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{color}">'
        self.parts.append(f"{dot}<title>{html.escape(title)}</title></circle>")

    def axes(self, x_ticks: list, y_ticks: list, x_label: str, y_label: str) -> None:
        grid = 'stroke-opacity="0.25"'
        for x in x_ticks:
            self.line([(x, self.y[0]), (x, self.y[1])], INK, grid)
            self.text(self.at(x, self.y[0])[0], HEIGHT - BOTTOM + 18, f"{x:g}" if x < 1024 else f"{x / 1024:g}K")
        for y in y_ticks:
            self.line([(self.x[0], y), (self.x[1], y)], INK, grid)
            self.text(self.left - 8, self.at(self.x[0], y)[1] + 4, f"{y:g}", "end")
        self.text(self.left + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 10, x_label)
        self.text(self.left, 36, y_label, "start")


def write(path: pathlib.Path, panels: list) -> None:
    size = f"{WIDTH * len(panels)} {HEIGHT}"
    body = "\n".join(part for panel in panels for part in panel.parts)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="12">\n{body}\n</svg>\n',
        encoding="utf-8",
        errors="replace",  # JSON may hold halves of characters
    )


def memory_bytes(shape: dict) -> float:
    """Each of K, V, Q and the output once."""
    rows = shape["batch"] * shape["seqlen_q"] * shape["num_heads"]
    return shape["kv_bytes"] + 2 * rows * (shape["head_dim"] + shape["head_dim_v"])


def roofline(report: dict) -> Panel:
    copy, gemm = report["copy_gb_per_s"] * 1e-3, report["gemm_tflop_per_s"]
    panel = Panel(0, f"{report['device']}, {report['dtype']}", (1, 16384), (1, 1000), True)
    panel.axes([4**i for i in range(8)], [1, 10, 100, 1000], "operations a byte of K, V, Q and output", "TFLOP/s")
    ridge = gemm / copy
    panel.line([(1, copy), (ridge, gemm), (16384, gemm)], INK)
    panel.text(*[a - 6 for a in panel.at(16384, gemm)], f"GEMM {gemm:.0f} TFLOP/s", "end")
    x, y = panel.at(48, 48 * copy)
    panel.text(x - 8, y - 8, f"copy {copy * 1e3:.0f} GB/s", "end")
    for shape in report["shapes"]:
        rate = shape["flop"] / shape["us"] * 1e-6
        title = f"{shape['name']}: {rate:.0f} TFLOP/s, {shape['kernel']}"
        panel.dot(shape["flop"] / memory_bytes(shape), rate, WORKLOADS[shape["workload"]], title)
    for i, (workload, color) in enumerate(WORKLOADS.items()):
        panel.text(panel.left + WIDTH - LEFT - RIGHT + 8, TOP + 60 + 18 * i, workload, "start", color)
    return panel


def prefill(report: dict, column: int, mask: str) -> Panel:
    shapes = [s for s in report["shapes"] if s["name"] == f"prefill {mask} {s['seqlen_q']}"]
    panel = Panel(column, f"prefill, {mask}, 16 heads of 128, 16k tokens in all", (512, 16384), (0, 800), False)
    panel.axes([512 * 2**i for i in range(6)], list(range(0, 801, 200)), "tokens of a prompt", "TFLOP/s")
    labels = []
    for name, color in COLORS.items():
        times = [(s, s["us"] if name == "onepass" else s["peers_us"].get(name)) for s in shapes]
        points = [(s["seqlen_q"], s["flop"] / us * 1e-6) for s, us in times if us]
        if not points:
            continue
        panel.line(points, color)
        for x, y in points:
            panel.dot(x, y, color, f"{name}, {x}: {y:.0f} TFLOP/s")
        labels.append((panel.at(*points[-1])[1], name, color))
    below = 0.0
    for y, name, color in sorted(labels):
        below = max(y + 4, below + 15)
        panel.text(panel.left + WIDTH - LEFT - RIGHT + 8, below, name, "start", color)
    return panel


def is_a(kind: type, value) -> bool:
    if kind is float:
        return isinstance(value, int | float) and 0 < value < 1e18  # not NaN, nor what no float holds
    return isinstance(value, kind)


def check(where: str, found, fields: dict) -> None:
    """ValueError unless `found` is an object with these fields."""
    if not isinstance(found, dict):
        raise ValueError(f"{where}expected an object, found {type(found).__name__}")
    for name, kind in fields.items():
        if name not in found:
            raise ValueError(f"{where}{name}: expected {WORDS[kind]}, found none")
        if not is_a(kind, found[name]):
            raise ValueError(f"{where}{name}: expected {WORDS[kind]}, found {json.dumps(found[name])[:80]}")


def read(path: pathlib.Path) -> dict:
    """The report; ValueError where it is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError("expected text in UTF-8, found other bytes") from None
    try:
        report = json.loads(text)
    except ValueError as error:
        found = f"none ({error})" if text.strip() else "an empty file"
        raise ValueError(f"expected a report in JSON, found {found}") from None
    check("", report, OF_REPORT)
    for i, shape in enumerate(report["shapes"]):
        where = f"shapes[{i}]: "
        check(where, shape, OF_SHAPE)
        if shape["workload"] not in WORKLOADS:
            raise ValueError(
                f"{where}workload: expected one of {', '.join(WORKLOADS)}, found {json.dumps(shape['workload'])}"
            )
        peers = {name: us for name, us in shape["peers_us"].items() if us is not None}  # None: it takes no such shape
        check(f"{where}peers_us: ", peers, dict.fromkeys(peers, float))
    return report


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    args = parser.parse_args()
    try:
        report = read(args.report)
    except OSError as error:
        sys.exit(f"attention_plots.py: {args.report}: {error.strerror}")
    except ValueError as error:
        sys.exit(f"attention_plots.py: {args.report}: {error}")
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
        write(args.folder / "gpu-roofline.svg", [roofline(report)])
        write(args.folder / "gpu-prefill.svg", [prefill(report, 0, "causal"), prefill(report, 1, "full")])
    except OSError as error:
        sys.exit(f"attention_plots.py: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
