"""What all tests share: the device named by DEEPCLUST_DEVICE (default cpu), one thread, no windows."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import pytest


@pytest.fixture(scope="session")
def root() -> Path:
    "The top folder of the project."
    return ROOT


@pytest.fixture(scope="session")
def device():
    "The device that tests run on; a name that is not available is an error, not a skipped test."
    import torch

    from deepclust_nb.core import pick_device

    torch.set_num_threads(1)
    return pick_device(os.environ.get("DEEPCLUST_DEVICE", "cpu"))
