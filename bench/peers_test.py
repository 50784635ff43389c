"""The comparisons with peers where no peer is installed: --help works, and the rest is refused in one line."""

import pathlib
import subprocess
import sys
import unittest

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


if __name__ == "__main__":
    unittest.main()
