"""The comparisons with peers where no peer is installed: --help works, and the rest is refused in one line; what draws their reports."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.dom.minidom

import attention_anchors

FOLDER = pathlib.Path(__file__).resolve().parent
# As if nothing were installed, wherever this runs.
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(("torch", "llama_cpp", "numpy", "gguf")))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# As if torch were, with no GPU.
WITHOUT_GPU = """
import runpy, sys, unittest.mock
sys.modules.update({name: unittest.mock.MagicMock() for name in ("torch", "onepass", "onepass.flash_attn_interface")})
sys.modules["torch"].cuda.is_available.return_value = False
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
NEEDS = {
    "attention_peers.py": ("torch", "torch", ([], ["--device", "cuda"])),
    "model_peers.py": ("llama_cpp", "llama-cpp-python", (["--model", "x"],)),
    "batching_peers.py": ("llama_cpp", "llama-cpp-python", (["--model", "x"],)),
    "attention_call_overhead.py": ("torch, onepass", "torch ./python", ([],)),
    "make_model.py": ("numpy, gguf", "numpy gguf", (["--shape", "qwen2.5-0.5b", "--output", "x"],)),
}


def run(script: str, *arguments: str, code: str = WITHOUT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-B", "-c", code, str(FOLDER / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=FOLDER)


class WithoutPeers(unittest.TestCase):
    def test_help(self):
        for script in NEEDS:
            result = run(script, "--help")
            self.assertEqual((result.returncode, result.stderr), (0, ""), script)
            self.assertTrue(result.stdout.startswith(f"usage: {script}"), result.stdout)

    def test_one_line(self):
        for script, (module, package, calls) in NEEDS.items():
            for arguments in calls:
                result = run(script, *arguments)
                what = (
                    "them to be installed (pip install {}), found one missing"
                    if ", " in module
                    else "it to be installed (pip install {}), found none"
                )
                expected = f"{script}: {module}: expected {what.format(package)}\n"
                self.assertEqual((result.returncode, result.stdout, result.stderr), (1, "", expected))


class AttentionPeers(unittest.TestCase):
    """What attention_peers.py cannot do is refused before anything is measured."""

    def test_arguments(self):
        cases = {
            "--threads 0": "expected 1 to 1024, found 0",
            "--threads x": "expected 1 to 1024, found x",
            "--seconds -1": "expected 0.01 to 600, found -1",
            "--seconds nan": "expected 0.01 to 600, found nan",
            "--seconds inf": "expected 0.01 to 600, found inf",
            "--rounds 0": "expected 1 to 1000, found 0",
            "--rounds -1": "expected 1 to 1000, found -1",
            "--shapes [ --device cuda": "expected a regular expression, found [: unterminated character set at position 0",
            "--threads 2 --device cuda": "expected --device cpu, found cuda",
            "--kernel auto": "expected --device cuda, found cpu",
            "--shapes decode": "expected --device cuda, found cpu",
            "--workload all": "expected --device cuda, found cpu",
            "--peers FA3,FA9 --device cuda": "expected FA3, cuDNN, FA2 or some of them, found FA9",
            "--peers FA3": "expected --device cuda, found cpu",
            "--instances 0 --device cuda": "expected 1 to 16, found 0",
            "--instances 2": "expected --device cuda, found cpu",
            "--library x": "expected --device cuda, found cpu",
            "--output x": "expected --device cuda, found cpu",
            "--verbose": "expected --device cuda, found cpu",
        }
        for arguments, message in cases.items():
            result = run("attention_peers.py", *arguments.split())
            expected = f"attention_peers.py: argument {arguments.split()[0]}: {message}\n"
            self.assertEqual((result.returncode, result.stdout, result.stderr), (2, "", expected))

    def test_verdicts(self):
        def verdicts(sides, name="extend 4096+1024, b4, page 64", kernel="hopper-prefill", **more):
            shape = {"name": name, "kernel": kernel, "workload": name.split()[0], "flop": 6e9, "kv_bytes": 6e6, **more}
            shape["sides"] = {side: {"us": us} for side, us in sides.items()}
            return attention_anchors.verdicts(shape, {"copy_gb_per_s": 3000.0})

        slow = {"onepass": 10.0, "contiguous": 9.0, "FA3": 12.0}
        self.assertEqual(verdicts(slow), [("1.10x FA3: 1.20x", "reached"), ("0.97x contiguous: 0.90x", "missed")])
        self.assertEqual(
            verdicts(slow, wrong="nan"), [("1.10x FA3: 1.20x", "wrong"), ("0.97x contiguous: 0.90x", "wrong")]
        )
        self.assertEqual(verdicts(slow, kernel="portable"), [])
        alone = {"onepass": 10.0}
        self.assertEqual(verdicts(alone), [("1.10x FA3*: 1.10x", "missed"), ("0.97x contiguous:", "not measured")])
        self.assertEqual(verdicts({"onepass": 9.0}, "prefill causal 512"), [("1.05x FA3/cuDNN*: 2.08x", "reached")])
        both = {"onepass": 10.0, "FA3": 12.0, "cuDNN": 10.6}
        self.assertEqual(verdicts(both, "prefill causal 512"), [("1.05x FA3/cuDNN: 1.06x", "reached")])
        self.assertEqual(
            verdicts({"onepass": 2.0}, "decode b128 ctx 4096, page 64"), [("0.97x copy: 1.00x", "reached")]
        )
        self.assertEqual(verdicts(both, "a shape without a target"), [])

    def test_program(self):
        def refusal(program) -> str:
            code = "import attention_program, pathlib, sys; attention_program.report(pathlib.Path(sys.argv[1]), '--device')"
            command = [sys.executable, "-B", "-c", code, program]
            result = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
            return result.stderr.removeprefix("attention_peers.py: --onepass: ").rstrip()

        self.assertEqual(refusal("/nowhere/onepass"), "/nowhere/onepass: No such file or directory")
        self.assertEqual(refusal("/"), "/: Permission denied")
        with tempfile.TemporaryDirectory() as folder:
            script = os.path.join(folder, "onepass")
            for lines, message in (
                ("exit 3", f"{script}: exit status 3"),
                ("echo first >&2; echo onepass: no >&2; exit 1", "onepass: no"),
                ("echo text", f"{script}: expected a report in JSON, found none"),
            ):
                pathlib.Path(script).write_text(f"#!/bin/sh\n{lines}\n")
                os.chmod(script, 0o755)
                self.assertEqual(refusal(script), message)


class AttentionCallOverhead(unittest.TestCase):
    def test_calls(self):
        for calls in ("0", "-1", "x", "1.5"):
            result = run("attention_call_overhead.py", "--calls", calls)
            expected = f"attention_call_overhead.py: argument --calls: expected 1 to 1000000, found {calls}\n"
            self.assertEqual((result.returncode, result.stdout, result.stderr), (2, "", expected))

    def test_no_gpu(self):
        result = run("attention_call_overhead.py", code=WITHOUT_GPU)
        expected = "attention_call_overhead.py: GPU: expected one that PyTorch can use, found none\n"
        self.assertEqual((result.returncode, result.stdout, result.stderr), (1, "", expected))


class AttentionPlots(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.file = self.folder / "report.json"
        shape = {"name": "prefill causal 1024", "workload": "prefill", "kernel": "<auto>", "us": 10, "flop": 1e9}
        shape |= {"kv_bytes": 2**20, "batch": 16, "seqlen_q": 1024, "num_heads": 16, "head_dim": 128, "head_dim_v": 128}
        shape["peers_us"] = {"FA3": 11.5, "another": None}
        self.report = {"device": "A & B <1>", "dtype": "bfloat16", "copy_gb_per_s": 3000, "gemm_tflop_per_s": 650.5}
        self.report["shapes"] = [shape, shape | {"seqlen_q": 2048, "name": "prefill causal 2048"}]

    def draw(self, content: str | bytes, folder: str = "svg") -> subprocess.CompletedProcess:
        self.file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return run("attention_plots.py", str(self.file), str(self.folder / folder))

    def refused(self, message: str, content: str | bytes) -> None:
        result = self.draw(content)
        expected = f"attention_plots.py: {self.file}: {message}\n"
        self.assertEqual((result.returncode, result.stdout, result.stderr), (1, "", expected))
        self.assertFalse((self.folder / "svg").exists())

    def test_draws(self):
        result = self.draw(json.dumps(self.report))
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))
        texts = []
        for name in ("gpu-roofline.svg", "gpu-prefill.svg"):
            picture = xml.dom.minidom.parse(str(self.folder / "svg" / name))
            for tag in ("text", "title"):
                texts += [node.firstChild.data for node in picture.getElementsByTagName(tag)]
        self.assertIn("A & B <1>, bfloat16", texts)
        self.assertIn("prefill causal 1024: 100 TFLOP/s, <auto>", texts)
        self.assertIn("FA3, 1024: 87 TFLOP/s", texts)

    def test_no_report(self):
        self.refused("expected a report in JSON, found an empty file", "")
        self.refused("expected a report in JSON, found none (Expecting value: line 1 column 1 (char 0))", "text")
        self.refused("expected text in UTF-8, found other bytes", b"\xff")
        self.refused("expected an object, found list", "[]")
        self.refused("device: expected text, found none", "{}")
        report, shape = self.report, self.report["shapes"][0]
        self.refused("shapes: expected a list, found 1", json.dumps(report | {"shapes": 1}))
        self.refused(
            "copy_gb_per_s: expected a number above 0, found NaN", json.dumps(report | {"copy_gb_per_s": float("nan")})
        )
        for changed, message in (
            (1, "expected an object, found int"),
            (shape | {"us": 0}, "us: expected a number above 0, found 0"),
            (shape | {"workload": "idle"}, 'workload: expected one of prefill, extend, decode, found "idle"'),
            (shape | {"peers_us": {"FA3": "x"}}, 'peers_us: FA3: expected a number above 0, found "x"'),
        ):
            self.refused(f"shapes[1]: {message}", json.dumps(report | {"shapes": [shape, changed]}))

    def test_files(self):
        result = run("attention_plots.py", "/nowhere/report.json", str(self.folder))
        expected = "attention_plots.py: /nowhere/report.json: No such file or directory\n"
        self.assertEqual((result.returncode, result.stdout, result.stderr), (1, "", expected))
        result = self.draw(json.dumps(self.report), folder="report.json")
        self.assertEqual((result.returncode, result.stderr), (1, f"attention_plots.py: {self.file}: File exists\n"))
        result = run("attention_plots.py")
        expected = "attention_plots.py: the following arguments are required: report, folder\n"
        self.assertEqual((result.returncode, result.stdout, result.stderr), (2, "", expected))


if __name__ == "__main__":
    unittest.main()
