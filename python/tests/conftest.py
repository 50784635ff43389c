"""The tests run on a GPU where there is one; elsewhere on the CPU with fake_library.py in place of the kernels."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
try:
    import torch
except ImportError:
    torch = None
    collect_ignore_glob = ["test_attention*.py"]

if torch is not None and not torch.cuda.is_available():
    import fake_library

    FAKE = fake_library.install()
else:
    FAKE = None


@pytest.fixture
def device() -> str:
    return "cuda" if FAKE is None else "cpu"


@pytest.fixture
def gpu() -> str:
    if FAKE is not None:
        pytest.skip("needs a GPU")
    return "cuda"


@pytest.fixture(autouse=True)
def seed():
    if torch is not None:
        torch.manual_seed(1)
