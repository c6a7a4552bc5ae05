"""The installed package: every module imports alone, without notebook tools, and says its version."""

import json
import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "deepclust_nb"
NOTEBOOK_TOOLS = "nbdev fastcore execnb papermill jupyter_client jupyterlab nbformat nbclient IPython ipywidgets umap".split()

# One interpreter imports torch and then forks for every module, so each is imported fresh and the
# cost of torch is paid once.
ALONE = """
import importlib, json, os, sys, traceback
import torch, torchvision, sklearn
before, failed = set(sys.modules), {}
for name in sys.argv[1].split(","):
    pid = os.fork()
    if pid:
        failed[name] = os.waitpid(pid, 0)[1]
        continue
    try:
        importlib.import_module(name)
        tools = sorted(set(sys.argv[2].split(",")) & set(sys.modules))
        if tools:
            print(name, "imports", *tools)
        os._exit(1 if tools else 0)
    except BaseException:
        traceback.print_exc()
        os._exit(2)
print(json.dumps({name: code for name, code in failed.items() if code}))
"""


def modules() -> list[str]:
    "Every module of the package but those about notebooks: nbdev's `_modidx`, and `widgets`."
    about_notebooks = ("_modidx.py", "widgets.py")
    files = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in about_notebooks)
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files]
    return [name.removesuffix(".__init__") for name in names]


def python(*args: str) -> subprocess.CompletedProcess:
    "A fresh interpreter, in which only the package and what is installed can be found."
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = [sys.executable, *args]
    return subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_module_imports_alone_and_without_notebook_tools():
    run = python("-c", ALONE, ",".join(modules()), ",".join(NOTEBOOK_TOOLS))
    assert run.returncode == 0, run.stderr
    failed = json.loads(run.stdout.strip().splitlines()[-1])
    assert not failed, run.stdout + run.stderr


def test_whole_package_in_one_interpreter_without_notebook_tools():
    lines = [f"import {name}" for name in modules()]
    check = f"import sys; print(sorted(set({NOTEBOOK_TOOLS!r}) & set(sys.modules)))"
    run = python("-c", "; ".join([*lines, check]))
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().splitlines()[-1] == "[]"


def test_version_is_that_of_settings():
    import deepclust_nb

    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    assert deepclust_nb.__version__ == settings["DEFAULT"]["version"]


def test_every_exported_name_exists():
    import importlib

    for name in modules():
        module = importlib.import_module(name)
        for exported in getattr(module, "__all__", []):
            assert hasattr(module, exported), f"{name}.{exported}"


def test_device_is_the_one_asked_for(device):
    wanted = os.environ.get("DEEPCLUST_DEVICE", "cpu").split(":")[0]
    assert wanted in ("auto", device.type)
