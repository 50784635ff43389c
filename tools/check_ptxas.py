#!/usr/bin/env python3
"""check_ptxas.py COMMAND...: runs an nvcc command (with -Xptxas=-v) and fails when a kernel spills registers or its wgmma
instructions are serialized. ptxas says the latter in mere notes, which no option turns into errors.

Goes before the compiler as CMake's CUDA_COMPILER_LAUNCHER. ptxas's notes are left out of what is shown, unless they are a complaint.
"""

import re
import subprocess
import sys

FUNCTION = re.compile(r"(?:Compiling entry function|Function properties for|in (?:the )?function) '?([\w$.]+)'?")
SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


def check(text: str) -> tuple[list[str], list[str]]:
    """Splits a compiler's messages into those to show and the complaints."""
    shown, complaints = [], []
    function = "?"
    after_function = False
    for line in text.splitlines():
        if match := FUNCTION.search(line):
            function = match[1]
        spill = SPILL.search(line)
        if spill and (int(spill[1]) or int(spill[2])):
            complaints.append(f"{function}: registers are spilled: {line.strip()}")
        elif "instructions are serialized" in line:
            complaints.append(f"{function}: wgmma is serialized: {line.strip()}")
        elif not line.startswith("ptxas info") and not (spill and after_function):
            shown.append(line)
        after_function = "Function properties for" in line
    return shown, complaints


def main() -> int:
    result = subprocess.run(sys.argv[1:], stderr=subprocess.PIPE, text=True, check=False)
    shown, complaints = check(result.stderr)
    for line in shown:
        print(line, file=sys.stderr)
    for line in complaints:
        print(f"error: {line}", file=sys.stderr)
    return result.returncode or (1 if complaints else 0)


if __name__ == "__main__":
    sys.exit(main())
