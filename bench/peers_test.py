"""The comparisons with peers where no peer is installed: --help works, and the rest is refused in one line."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import attention_anchors

FOLDER = pathlib.Path(__file__).resolve().parent
# As if nothing were installed, wherever this runs.
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(("torch", "llama_cpp", "numpy", "gguf")))
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


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-B", "-c", WITHOUT, str(FOLDER / script), *arguments]
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


if __name__ == "__main__":
    unittest.main()
