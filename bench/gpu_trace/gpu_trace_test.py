#!/usr/bin/env python3
"""gpu_trace.py reads from records what was put into them."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

import gpu_trace

UPLOAD, FIRST, LAST = "upload_kernel(uint4*)", "void onepass::plan<(int)3>(int)", "sample"
LAYER = ("qkv", "attention", "mlp")


class Timeline:
    """Records of steps: upload (1 us), 2 us later a graph of a plan, 4 layers of three kernels and a last one, 2 us each."""

    def __init__(self):
        self.lines, self.now, self.correlation = [], 0, 0

    def add(self, kind, start, us, graph, what):
        self.lines.append(f"{kind}\t{start * 1000}\t{(start + us) * 1000}\t7\t{graph}\t{self.correlation}\t{what}")

    def step(self, graph, gap, lead, layers=4):
        """Begins `gap` us after the step before it, whose end is `lead` us after this one's launch."""
        self.correlation += 1
        self.add("call", self.now - lead - 3, 3, 0, "cudaGraphLaunch_v10000")
        self.correlation += 1
        self.add("kernel", self.now + gap, 1, 0, UPLOAD)
        self.correlation -= 1
        at = self.now + gap + 3
        for what in (FIRST, *LAYER * layers, LAST):
            self.add("kernel", at, 2, graph, what)
            at += 2
        self.correlation += 1
        self.now = at


def run(lines, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        records, trace = pathlib.Path(folder, "records.tsv"), pathlib.Path(folder, "trace.json")
        records.write_text("\n".join(lines) + "\n")
        out, err = io.StringIO(), io.StringIO()
        argv = ["gpu_trace.py", str(records), "--output", str(trace), *arguments]
        with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = gpu_trace.main()
        return status, out.getvalue() + err.getvalue(), json.loads(trace.read_text()) if trace.exists() else None


class GpuTraceTest(unittest.TestCase):
    def test_steady_decoding(self):
        timeline = Timeline()
        for _ in range(4):
            timeline.step(graph=5, gap=50, lead=-1)
        for i in range(10):
            timeline.step(graph=9, gap=20 if i == 6 else 4, lead=-7 if i == 6 else 30)
        status, text, trace = run(timeline.lines, "--steps", "3")
        self.assertEqual(status, 0, text)
        # The last of ten is left out. 29 us of work in a step, 2 within it without.
        self.assertIn("9 steps of one graph, 15 kernels and copies each", text)
        self.assertIn(f"busy {9 * 29 / (9 * 31 + 7 * 4 + 20):.2%}", text)
        self.assertRegex(text, r"from step to step +35\.00 +35\.00 +51\.00 +51\.00")
        self.assertRegex(text, r"no work between two steps +4\.00 +4\.00 +20\.00 +20\.00")
        self.assertRegex(text, r"no work within a step, each time +2\.00 +2\.00 +2\.00 +2\.00")
        self.assertRegex(text, r"launched before the step before it ended +-7\.00 +30\.00 +30\.00 +30\.00")
        self.assertIn("launched too late: 1 of 8; without work for more than 10 us between steps: 1 of 8", text)
        self.assertRegex(text, r"\n +4\.0 +2\.00 +2\.00 +\d+\.\d% +attention\n")
        self.assertIn("a layer: 6.00 us, medians of 18 (4 in a step", text)
        self.assertRegex(text, r"\n +2\.00 +4\.00 +2\.00 +2\.00 +attention\n")
        self.assertRegex(text, r"\n +3\.00 +5\.00 +2\.00 +plan<3>\n")
        names = [event["name"] for event in trace["traceEvents"] if event["ph"] == "X"]
        self.assertEqual(names.count("plan<3>"), 3)
        self.assertIn("cudaGraphLaunch", names)

    def test_kernels_that_overlap_take_lanes_of_their_own(self):
        timeline = Timeline()
        for _ in range(5):
            timeline.step(graph=9, gap=4, lead=30)
            timeline.add("kernel", timeline.now - 3, 2, 9, LAST)
        status, text, trace = run(timeline.lines)
        self.assertEqual(status, 0, text)
        events = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["pid"] == 1]
        for lane in {event["tid"] for event in events}:
            ends = 0.0
            for event in sorted((e for e in events if e["tid"] == lane), key=lambda e: e["ts"]):
                self.assertGreaterEqual(event["ts"], ends)
                ends = event["ts"] + event["dur"]
        self.assertEqual({event["tid"] for event in events}, {0, 1})

    def test_without_graphs_it_says_so(self):
        timeline = Timeline()
        for _ in range(5):
            timeline.step(graph=0, gap=4, lead=30)
        status, text, trace = run(timeline.lines)
        self.assertEqual(status, 1)
        self.assertIn("expected at least 3 steps that replay one graph, found 0", text)
        self.assertIsNone(trace)


if __name__ == "__main__":
    unittest.main()
