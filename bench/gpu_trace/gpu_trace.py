#!/usr/bin/env python3
"""What a GPU does in steady decoding, from the records of libonepass_gpu_trace.so (gpu_trace.cc says how to make them).

    python3 bench/gpu_trace/gpu_trace.py records.tsv --output trace.json

A step begins with its upload. Steady decoding is the longest row of steps that replay one graph. Printed of it: how much of the
time the GPU is busy, how long it has no work between steps and within them, how far ahead of it the host launches, the time by
kernel, and when each kernel of a layer begins and ends. OUTPUT is a few of these steps for ui.perfetto.dev.
"""

import argparse
import collections
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
from typing import NamedTuple

GAP_US = 10.0  # between steps, what is worth counting


class Record(NamedTuple):
    kind: str
    start: int
    end: int
    stream: int
    graph: int
    correlation: int
    what: str


class Step(NamedTuple):
    records: list[Record]  # on the GPU, by start
    start: int
    end: int

    @property
    def graph(self) -> int:
        """The one that it replays; 0 when it is launched kernel by kernel."""
        graphs = {record.graph for record in self.records if record.graph}
        return graphs.pop() if len(graphs) == 1 else 0


def read(path: pathlib.Path) -> list[Record]:
    records = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            kind, start, end, stream, graph, correlation, what = line.rstrip("\n").split("\t", 6)
            records.append(Record(kind, int(start), int(end), int(stream), int(graph), int(correlation), what))
    return records


def demangle(names: set[str]) -> dict[str, str]:
    """By c++filt where there is one; mangled names name their kernels too."""
    order = sorted(names)
    if shutil.which("c++filt") is None:
        return {name: name for name in order}
    result = subprocess.run(["c++filt"], input="\n".join(order), capture_output=True, text=True, check=True)
    return dict(zip(order, result.stdout.splitlines(), strict=True))


def short(name: str) -> str:
    """A kernel's name with its template's arguments, without namespaces and parameters."""
    name = name.replace("(anonymous namespace)::", "").replace("onepass::", "")
    name = re.sub(r"^void ", "", name)
    depth, end = 0, len(name)
    for i, letter in enumerate(name):
        depth += (letter in "<") - (letter in ">")
        if letter == "(" and depth == 0:
            end = i
            break
    name = re.sub(r"\((?:int|bool|unsigned int)\)", "", name[:end])
    return name if len(name) <= 76 else name[:73] + "..."


def split_steps(records: list[Record]) -> list[Step]:
    work = sorted((record for record in records if record.kind != "call"), key=lambda record: record.start)
    begins = [i for i, record in enumerate(work) if "upload_kernel" in record.what]
    steps = []
    for begin, end in zip(begins, [*begins[1:], len(work)], strict=True):
        of_step = work[begin:end]
        steps.append(Step(of_step, of_step[0].start, max(record.end for record in of_step)))
    return steps


def steady(steps: list[Step]) -> list[Step]:
    best, begin = [], 0
    for i in range(1, len(steps) + 1):
        if i < len(steps) and steps[i].graph == steps[begin].graph != 0:
            continue
        if steps[begin].graph != 0 and i - begin > len(best):
            best = steps[begin:i]
        begin = i
    return best[:-1]  # to the last one's records the end of the run may have been added


def gaps(steps: list[Step]) -> tuple[list[float], list[float], float]:
    """Times without work, us, before a step and within one, and the share of the time with work."""
    between, within, busy, end = [], [], 0, steps[0].start
    for step in steps:
        for i, record in enumerate(step.records):
            if record.start > end:
                (within if i else between).append((record.start - end) / 1e3)
            elif i == 0:
                between.append(0.0)
            busy += max(0, record.end - max(record.start, end))
            end = max(end, record.end)
    return between[1:], within, busy / (end - steps[0].start)


def leads(steps: list[Step], calls: dict[int, Record]) -> list[float]:
    """How long before the GPU has done all earlier work the host has launched a step's graph, us; negative: after it."""
    result = []
    for before, step in zip(steps, steps[1:], strict=False):
        launches = [calls[r.correlation] for r in step.records if r.graph and r.correlation in calls]
        if launches:
            result.append((before.end - launches[0].end) / 1e3)
    return result


def period(names: list[str]) -> tuple[int, int]:
    """The layers in a step's kernels: begin and length of the repetition that covers most."""
    best = (0, 0, 0)
    for length in range(1, min(64, len(names) // 3) + 1):
        run = 0
        for i in range(len(names) - length):
            run = run + 1 if names[i] == names[i + length] else 0
            if run > best[0] and run >= 2 * length:
                best = (run, i + 1 - run, length)
    return best[1], best[2]


def print_layer(steps: list[Step], name_of: dict[str, str]) -> None:
    names = [record.what for record in steps[0].records]
    begin, length = period(names)
    same = [step for step in steps if [record.what for record in step.records] == names]
    if length == 0:
        print("\nno repetition of layers found")
        return
    layers = 0
    while names[begin + layers * length : begin + (layers + 1) * length] == names[begin : begin + length]:
        layers += 1
    # The layer begins behind what takes longest after its neighbour: any cut will do, so the one that was found.
    rows = []
    lengths = []
    for step in same:
        for layer in range(1, layers - 1):
            base = begin + layer * length
            origin = step.records[base].start
            rows.append(
                [((r.start - origin) / 1e3, (r.end - origin) / 1e3) for r in step.records[base : base + length]]
            )
            lengths.append((step.records[base + length].start - origin) / 1e3)
    print(
        f"\na layer: {statistics.median(lengths):.2f} us, medians of {len(rows)} ({layers} in a step, the first and last left out)"
    )
    print("    begin      end       us   new us   kernel")
    done = 0.0
    for i in range(length):
        start = statistics.median(row[i][0] for row in rows)
        end = statistics.median(row[i][1] for row in rows)
        print(
            f" {start:8.2f} {end:8.2f} {end - start:8.2f} {end - max(start, done):8.2f}   {name_of[names[begin + i]]}"
        )
        done = max(done, end)
    origin_of = [step.records[0].start for step in same]
    print("\nbefore and after the layers, from the step's begin, medians")
    edges = [*range(begin), *range(begin + layers * length, len(names))]
    for i in edges:
        start = statistics.median((step.records[i].start - at) / 1e3 for step, at in zip(same, origin_of, strict=True))
        end = statistics.median((step.records[i].end - at) / 1e3 for step, at in zip(same, origin_of, strict=True))
        print(f" {start:8.2f} {end:8.2f} {end - start:8.2f}            {name_of[names[i]]}")


def print_kernels(steps: list[Step], name_of: dict[str, str]) -> None:
    whole, alone, count = collections.Counter(), collections.Counter(), collections.Counter()
    end = 0
    for step in steps:
        for record in step.records:
            whole[record.what] += record.end - record.start
            alone[record.what] += max(0, record.end - max(record.start, end))
            count[record.what] += 1
            end = max(end, record.end)
    total = sum(alone.values())
    print("\nby kernel; new: what it adds to the time in which the GPU is busy")
    print("  a step   mean us    new us    share   kernel")
    for what, ns in alone.most_common():
        print(
            f" {count[what] / len(steps):7.1f} {whole[what] / count[what] / 1e3:9.2f} {ns / count[what] / 1e3:9.2f} {ns / total:8.1%}   {name_of[what]}"
        )


def print_list(title: str, values: list[float]) -> None:
    if values:
        ordered = sorted(values)
        at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.01, 0.5, 0.99)]
        print(f"{title:<52} {at[0]:9.2f} {at[1]:9.2f} {at[2]:9.2f} {ordered[-1]:9.2f}")


def chrome_trace(steps: list[Step], calls: list[Record], name_of: dict[str, str]) -> dict:
    """Kernels that overlap are drawn in lanes below each other, the host's calls above them."""
    begin, end = steps[0].start, steps[-1].end
    events = [
        {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": name}}
        for pid, name in ((0, "host: CUDA calls"), (1, "GPU"))
    ]

    def add(record: Record, name: str, pid: int, lane: int) -> None:
        times = {"ts": (record.start - begin) / 1e3, "dur": (record.end - record.start) / 1e3}
        arguments = {"stream": record.stream, "graph": record.graph, "correlation": record.correlation}
        events.append({"name": name, "ph": "X", "pid": pid, "tid": lane, **times, "args": arguments})

    lanes = []
    for step in steps:
        for record in step.records:
            free = [i for i, until in enumerate(lanes) if until <= record.start]
            lane = free[0] if free else len(lanes)
            lanes[lane : lane + 1] = [record.end]
            add(record, name_of[record.what], 1, lane)
    for call in calls:
        if call.end >= begin and call.start <= end:
            add(call, re.sub(r"_v\d+$", "", call.what), 0, call.stream)
    return {"displayTimeUnit": "ns", "traceEvents": events}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, help="Chrome's trace format; none: only what is printed")
    parser.add_argument("--steps", type=int, default=8, help="steps in OUTPUT, from the middle of those found")
    args = parser.parse_args()
    records = read(args.records)
    steps = steady(split_steps(records))
    if len(steps) < 3:
        print(f"{args.records}: expected at least 3 steps that replay one graph, found {len(steps)}", file=sys.stderr)
        return 1
    calls = [record for record in records if record.kind == "call"]
    full = demangle({record.what for step in steps for record in step.records})
    name_of = {name: short(of) for name, of in full.items()}
    between, within, busy = gaps(steps)
    lead = leads(steps, {call.correlation: call for call in calls})
    starts = [step.start for step in steps]
    print(
        f"{len(steps)} steps of one graph, {len(steps[0].records)} kernels and copies each; the GPU is busy {busy:.2%} of the time"
    )
    print(f"{'us':<52} {'1%':>9} {'median':>9} {'99%':>9} {'most':>9}")
    print_list("from step to step", [(b - a) / 1e3 for a, b in zip(starts, starts[1:], strict=False)])
    print_list("no work between two steps", between)
    print_list("no work within a step, each time", within)
    print_list("launched before the step before it ended", lead)
    late = sum(1 for value in lead if value <= 0)
    long = sum(1 for value in between if value > GAP_US)
    print(
        f"launched too late: {late} of {len(lead)}; without work for more than {GAP_US:g} us between steps: {long} of {len(between)}"
    )
    print_kernels(steps, name_of)
    print_layer(steps, name_of)
    if args.output:
        middle = max(0, (len(steps) - args.steps) // 2)
        trace = chrome_trace(steps[middle : middle + args.steps], calls, name_of)
        args.output.write_text(json.dumps(trace, separators=(",", ":")) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
