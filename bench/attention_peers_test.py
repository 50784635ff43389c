"""attention_peers.py where there is no torch: what needs none works, and the rest is refused in one line."""

import pathlib
import subprocess
import sys
import unittest

FOLDER = pathlib.Path(__file__).resolve().parent
# As if it were not installed, wherever this runs.
WITHOUT_TORCH = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-B", "-c", WITHOUT_TORCH, str(FOLDER / "attention_peers.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=FOLDER)


class WithoutTorch(unittest.TestCase):
    def test_help(self):
        result = run("--help")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("--workload", result.stdout)

    def test_one_line(self):
        for arguments in ([], ["--device", "cuda"]):
            result = run(*arguments)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertEqual(
                result.stderr, "attention_peers.py: torch: expected it to be installed (pip install torch), found none\n"
            )


if __name__ == "__main__":
    unittest.main()
