"""What all tests share: the device named by DEEPCLUST_DEVICE (default cpu), one thread, no windows, and small runs."""

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import pytest

DEVICE = os.environ.get("DEEPCLUST_DEVICE", "cpu")
COMMAND = Path(sys.executable).with_name("deepclust")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
QUIET += " --disable-background-networking --disable-component-update"
TINY = ["--profile", "ci", "--set", "width=4", "--set", "log_every=1", "--device", DEVICE]


@pytest.fixture(scope="session")
def browser():
    "A headless Chromium; without one these tests are skipped."
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip("no Chromium here (on Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=QUIET.split())
        yield browser
        browser.close()


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
    return pick_device(DEVICE)


@dataclass(frozen=True)
class Answer:
    "How a command ended."

    code: int  # 1 when it left with a traceback
    out: str
    err: str

    @property
    def last(self) -> str:
        "The error stream without progress bars, which are wiped before a message is written."
        return self.err.split("\r")[-1]

    @property
    def crash(self) -> str:
        "The last line of a traceback; '' if there is none."
        return self.last.strip().splitlines()[-1] if "Traceback" in self.err else ""


@contextlib.contextmanager
def warnings_on_stderr():
    "Warnings go where they go in a process of their own, not into pytest's summary."

    def show(message, category, filename, lineno, file=None, line=None):
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    quiet = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for category in quiet:
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield


@pytest.fixture(scope="session")
def deepclust(device) -> Callable[..., Answer]:
    "The command line within this process, where imports are paid once."
    from deepclust_nb.cli import main

    def call(*args) -> Answer:
        out, err, code = io.StringIO(), io.StringIO(), 0
        streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with streams[0], streams[1], warnings_on_stderr():
            try:
                main([str(arg) for arg in args])
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                code = 1
                traceback.print_exc()
        return Answer(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def no_figures(monkeypatch):
    "Runs without their figures, which take longer than everything else in a small run."
    from deepclust_nb import train

    monkeypatch.setattr(train, "save_figures", lambda *rest: [])


@pytest.fixture(scope="session")
def shell() -> Callable[..., Answer]:
    "The installed command as a process of its own."

    def call(*args, cwd: Path | None = None) -> Answer:
        command = [str(arg) for arg in (COMMAND, *args)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
        return Answer(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    "Options that make a run small: a narrow network, profile ci, the device of the tests."
    return list(TINY)


def contents(folder: Path) -> dict[str, str]:
    "A digest of every file below a folder, and every folder's name."
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="session")
def listing() -> Callable[[Path], dict[str, str]]:
    "What is on disk, to be compared with what was."
    return contents


@pytest.fixture(scope="session")
def digits():
    "scikit-learn's digits as uint8 pictures (1797,8,8)."
    from deepclust_nb.data import load_data

    return load_data("digits").x[:, 0].numpy()


@pytest.fixture(scope="session")
def pictures(digits) -> Callable[..., Path]:
    "Write some of the digits as PNG files into a folder."
    from PIL import Image

    def write(folder: Path, n: int = 12, first: int = 0) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(first, first + n):
            Image.fromarray(digits[i]).save(folder / f"digit{i:03d}.png")
        return folder

    return write


def crops(folder, n: int, side: int = 64) -> None:
    "Pieces of two real photographs."
    from PIL import Image
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        picture = load_sample_images().images[i % 2]
        piece = picture[(13 * i) % 300 :, (29 * i) % 500 :][: side + i % 9, :side]
        Image.fromarray(piece).save(folder / f"{i:03}.png")


@pytest.fixture(scope="session")
def photos(tmp_path_factory, pictures) -> Path:
    "A flat folder of 60 pictures, without labels."
    return pictures(tmp_path_factory.mktemp("photos"), 60)


@pytest.fixture(scope="session")
def photo_run(tmp_path_factory, deepclust, photos, tiny) -> Path:
    "A run on the folder of pictures; tests read it and leave it as it is."
    out = tmp_path_factory.mktemp("photo_run") / "run"
    done = deepclust(
        "train", "mmdc", "--data", photos, "--k", 4, "--epochs", 3, "--out", out, *tiny
    )
    assert done.code == 0, done.err
    return out
