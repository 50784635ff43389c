#!/usr/bin/env python3
"""Runs the tests of this folder for ctest: pytest with torch where both are installed, and says so where they are not."""

import importlib.util
import subprocess
import sys
from pathlib import Path

missing = [name for name in ("torch", "pytest") if importlib.util.find_spec(name) is None]
if missing:
    print(f"skipped: no {' and no '.join(missing)} for {sys.executable}")
    sys.exit(0)
sys.exit(subprocess.call([sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__).parent]))
