"""A method of one's own: from the page's file to a run and back, what is refused, and what is never run."""

import json
import math
import re

import nbformat
import pytest
import torch

from deepclust_nb import own
from deepclust_nb.core import DeepClustError
from deepclust_nb.data import load_data
from deepclust_nb.own import own_method, run_file
from deepclust_nb.train import METHODS, build, load_run, make_plan

HEAD = """
from deepclust_nb.engine import Method
from torch import nn

class Mine(Method):
    "Mine: for a test"

    def __init__(self, net, k, view):
        super().__init__(k)
        self.net, self.view, self.head = net, view, nn.Linear(net.out_features, k)

    def loss(self, idx, batch):
        p, q = self.head(self.net(batch["views"])).softmax(1).chunk(2)
        return {"loss": -(p * q).sum(1).mean()}

    def features(self, x):
        return self.net(self.view(x))

    def scores(self, x):
        return self.head(self.features(x))
"""


@pytest.fixture(autouse=True)
def forgotten():
    "Methods of a test are unknown to the next."
    yield
    for name in list(own.OWN):
        METHODS.pop(name), own.OWN.pop(name)


@pytest.fixture
def file(tmp_path):
    "A file with a small method that keeps its promises."
    path = tmp_path / "mine.py"
    path.write_text(HEAD)
    return path


@pytest.fixture(scope="module")
def page(root):
    "The file that the page shows."
    notebook = nbformat.read(root / "nbs/foundations/21_own.ipynb", as_version=4)
    (cell,) = [c.source for c in notebook.cells if "SOURCE = " in c.source]
    return re.search(r"SOURCE = \"{3}\n(.*?)\"{3}", cell, re.S)[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shell, page, tiny):
    "The page's method, trained for two epochs by the installed command, left and taken up."
    folder = tmp_path_factory.mktemp("own method")  # a path with a blank
    (folder / "méthode.py").write_text(page, encoding="utf-8")
    asked = [f"{folder / 'méthode.py'}:CC", "--data", "digits", "--limit", 100]
    asked += ["--out", folder / "run", "--epochs", 2, "--set", "even=1.5", "--init", "random"]
    said = [shell("train", *asked, *tiny, *more) for more in (["--stop-after", 1], ["--resume"])]
    return said, folder


# end to end


def test_the_page_shows_a_method_in_under_60_lines(page):
    assert len(page.splitlines()) < 60 and "class CC(Method)" in page


def test_it_is_trained_left_and_taken_up(trained):
    said, folder = trained
    assert [one.code for one in said] == [0, 0], said[0].err + said[1].err
    config = json.loads((folder / "run/config.json").read_text(encoding="utf-8"))
    assert config["method"] == "CC" and config["recipe"]["even"] == 1.5
    assert "méthode" not in json.dumps(config, ensure_ascii=False)
    lines = (folder / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert (folder / "run/gallery.html").stat().st_size


def test_predict_is_told_where_the_method_is(trained, shell, pictures, tmp_path):
    _, folder = trained
    where, new = f"{folder / 'méthode.py'}:CC", pictures(tmp_path / "new", 5)
    done = shell("--own", where, "predict", folder / "run", new)
    assert done.code == 0, done.err
    stored = (folder / "run/assignments.csv").read_text(encoding="utf-8").splitlines()
    assert done.out.splitlines()[0] == stored[0] and len(done.out.splitlines()) == 6


def test_without_it_predict_says_what_to_give(trained, shell, pictures, tmp_path):
    _, folder = trained
    done = shell("predict", folder / "run", pictures(tmp_path / "new", 2))
    assert done.code == 2 and "Traceback" not in done.err and done.err.count("\n") == 1
    assert "--own FILE.py:CC" in done.err


OPENS = {
    "evaluate": [],
    "export": ["model.pt"],
    "howmany": ["--out", "found", "--max", 4],
    "refine": ["edits.json"],
}


@pytest.mark.parametrize("command", OPENS)
def test_every_command_that_opens_a_run_needs_it_and_takes_it(
    trained, deepclust, tmp_path, monkeypatch, command
):
    _, folder = trained
    monkeypatch.chdir(tmp_path)
    asked = [command, folder / "run", *OPENS[command]]
    if command != "refine":  # which reads the run only where a cluster is split
        done = deepclust(*asked)
        assert done.code == 2 and "--own FILE.py:CC" in done.last, done.err
    done = deepclust("--own", f"{folder / 'méthode.py'}:CC", *asked)
    if command == "refine":
        assert done.code == 2 and "edits.json" in done.last
    else:
        assert done.code == 0, done.err


def test_an_exported_file_needs_it_too(trained, deepclust, pictures, tmp_path):
    _, folder = trained
    where, out = f"{folder / 'méthode.py'}:CC", tmp_path / "model.pt"
    assert deepclust("--own", where, "export", folder / "run", out).code == 0
    new = pictures(tmp_path / "new", 3)
    assert deepclust("--own", where, "predict", out, new).code == 0
    METHODS.pop("CC"), own.OWN.pop("CC")
    done = deepclust("predict", out, new)
    assert done.code == 2 and "--own FILE.py:CC" in done.last


def test_methods_and_bench_take_a_file(deepclust, file):
    shown = deepclust("methods", f"{file}:Mine", "--profile", "ci")
    assert shown.code == 0 and shown.out.startswith("Mine: for a test")
    small = "--times 1 --width 4 --side 16 --bs 16 --backbone small_cnn --device cpu --json".split()
    done = deepclust("bench", f"{file}:Mine", *small)
    assert done.code == 0 and json.loads(done.out)[0]["method"] == "Mine", done.err


def test_cluster_takes_a_file(deepclust, file, photos, tmp_path):
    asked = [
        "--k",
        3,
        "--profile",
        "ci",
        "--epochs",
        1,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    ]
    done = deepclust("cluster", photos, "--method", f"{file}:Mine", *asked)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run/config.json").read_text())["method"] == "Mine"


def test_help_teaches_it(deepclust):
    for command in ([], ["train"], ["check"]):
        assert "FILE.py:NAME" in deepclust(*command, "--help").out


# what is refused

WRONG = {
    "import": ("import nothing_of_this_name", "line 1", "nothing_of_this_name"),
    "syntax": ("x = 1\ndef (:", "line 2", "SyntaxError"),
    "error": ("\n\n1 / 0", "line 3", "ZeroDivisionError"),
    "exit": ("import sys\nsys.exit(3)", "line 2", "SystemExit"),
    "missing": ("from torch import nn\nclass Other(nn.Module): pass", "no Mine in it", "no class"),
    "other": (HEAD.replace("class Mine", "class Other"), "no Mine in it", "it has Other"),
    "no method": ("class Mine: pass", "Mine", "derived from"),
    "no class": ("Mine = 3", "Mine", "derived from"),
    "not utf-8": (b"# \xff\nMine = 3", "SyntaxError", "encoding"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_is_wrong_ends_in_one_line(deepclust, tmp_path, wrong):
    source, *says = WRONG[wrong]
    path = tmp_path / "mine.py"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    done = deepclust("train", f"{path}:Mine", "--data", "digits")
    assert done.code == 2 and done.err.count("\n") == 1
    assert all(word in done.err for word in says), done.err
    assert "Mine" not in METHODS


@pytest.mark.parametrize(
    "asked", ["mine.py", "mine.py:", "mine.py:a b", "mine.txt:Mine", "C:\\a.py"]
)
def test_what_is_no_file_and_name_is_refused(asked):
    with pytest.raises(DeepClustError, match="give FILE.py:NAME"):
        own_method(asked)


def test_a_drive_letter_is_part_of_the_path():
    with pytest.raises(DeepClustError, match=r"C:\\a b\\mine.py:Mine: no such file"):
        own_method("C:\\a b\\mine.py:Mine")


@pytest.mark.parametrize("name", ["ncc", "NCC", "MMDC", "random", "all"])
def test_the_name_of_a_built_in_method_is_refused(tmp_path, name):
    path, before = tmp_path / "mine.py", dict(METHODS)
    path.write_text("raise SystemExit('must not be run')")
    with pytest.raises(DeepClustError, match="give your class another name"):
        own_method(f"{path}:{name}")
    assert METHODS == before


def test_a_file_may_be_read_again_after_a_change(file):
    own_method(f"{file}:Mine")
    file.write_text(HEAD.replace("for a test", "changed"))
    own_method(f"{file}:Mine")
    assert METHODS["Mine"].title == "Mine: changed"


def test_files_beside_it_can_be_imported(tmp_path):
    import sys

    (tmp_path / "beside_it.py").write_text(HEAD)
    path, before = tmp_path / "mine.py", list(sys.path)
    path.write_text("from beside_it import Mine\nclass Other(Mine): pass\n")
    assert own_method(f"{path}:Other") == "Other"
    assert sys.path == before and not (tmp_path / "__pycache__" / "mine.cpython-311.pyc").exists()


def test_two_files_of_one_name_do_not_mix(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"WHERE = {folder!r}")
    first, second = (run_file(tmp_path / folder / "mine.py") for folder in "ab")
    assert (first.WHERE, second.WHERE) == ("a", "b") and first.__name__ != second.__name__


# recipes


RECIPE = """
from dataclasses import dataclass
from deepclust_nb.recipes import Recipe, setting

DECORATED
class MineRecipe(Recipe):
    main_epochs: int = setting(7, "epochs", 1)
    SETTING
"""


def with_recipe(file, setting: str, decorated="@dataclass(frozen=True)"):
    "The method with a recipe of its own."
    recipe = RECIPE.replace("DECORATED", decorated).replace("SETTING", setting)
    mine = HEAD.replace("class Mine(Method):", "class Mine(Method):\n    recipe = MineRecipe")
    mine = mine.replace("view):\n", "view, share=0.0):\n")
    file.write_text(
        recipe + mine.replace("super().__init__(k)", "super().__init__(k); self.share = share")
    )
    return own_method(f"{file}:Mine")


def test_what_a_recipe_says_holds_at_every_profile(file):
    name = with_recipe(file, 'share: float = setting(0.5, "of something", 0, 1)')
    digits = load_data("digits")
    for profile in ("ci", "laptop", "gpu", "full"):
        recipe = METHODS[name].recipe(digits, profile)
        assert (recipe.main_epochs, recipe.share, recipe.expects) == (7, 0.5, "")
    assert METHODS[name].recipe(digits, "ci").width == 8 and recipe.degrees == 15.0
    plan = make_plan(name, digits, device="cpu", settings={"share": "0.25"})
    assert build(plan)[0].share == 0.25
    with pytest.raises(DeepClustError, match="share=2.0: give 1 or less"):
        make_plan(name, digits, device="cpu", settings={"share": "2"})
    with pytest.raises(DeepClustError, match="did you mean share"):
        make_plan(name, digits, device="cpu", settings={"shere": "1"})


def test_a_recipe_whose_settings_would_be_lost_is_refused(file):
    digits = load_data("digits")
    name = with_recipe(file, "share: float = 0.5", decorated="")
    with pytest.raises(DeepClustError, match=r"MineRecipe: write @dataclass"):
        METHODS[name].recipe(digits, "ci")
    name = with_recipe(file, "lr = 0.5")
    with pytest.raises(DeepClustError, match=r"MineRecipe.lr: give its type"):
        METHODS[name].recipe(digits, "ci")
    file.write_text(HEAD.replace("class Mine(Method):", "class Mine(Method):\n    recipe = dict"))
    own_method(f"{file}:Mine")
    with pytest.raises(DeepClustError, match="derived from Recipe"):
        METHODS["Mine"].recipe(digits, "ci")


def test_a_constructor_takes_what_it_asks_for(file):
    takes = HEAD.replace("self, net, k, view", "self, k, seed, n, view, net")
    file.write_text(
        takes.replace("super().__init__(k)", "super().__init__(k); self.told = (n, seed)")
    )
    name, digits = own_method(f"{file}:Mine"), load_data("digits").subset(torch.arange(50))
    plan = make_plan(name, digits, 10, "ci", device="cpu", seed=4)
    assert build(plan)[0].told == (50, 4)


def test_a_constructor_that_fails_says_where(file, deepclust):
    file.write_text(HEAD.replace("super().__init__(k)", "pass"))
    done = deepclust("check", f"{file}:Mine")
    assert done.code == 2 and "line 10" in done.err and "__init__" in done.err
    file.write_text(
        HEAD.replace("net, k, view", "backbone, k, view").replace("= net,", "= backbone,")
    )
    done = deepclust("check", f"{file}:Mine")
    assert done.code == 2 and "backbone" in done.err and done.err.count("\n") == 1


def test_views_may_be_ones_own(file):
    views = "    views = lambda augment: lambda x, idx, draws: {'views': x.repeat(2, 1, 1, 1)}\n"
    file.write_text(HEAD.replace("    def __init__", views + "\n    def __init__", 1))
    plan = make_plan(own_method(f"{file}:Mine"), "digits", profile="ci", device="cpu")
    x = torch.rand(3, 1, 8, 8)
    assert build(plan)[1](x, None, None)["views"].equal(torch.cat([x, x]))


# derived from a built-in method


DERIVED = {
    "mmdc": ("mmdc", "MMDC"),
    "lsdc": ("lsdc", "LSDC"),
    "scl": ("scl", "SCL"),
    "moco": ("scl", "MoCo"),
    "byol": ("byol", "BYOL"),
    "ncc": ("ncc", "NCC"),
    "digpro": ("digpro", "DigPro"),
    "instance": ("pretext", "Instance"),
    "rotnet": ("pretext", "RotNet"),
    "frozen": ("frozen", "Frozen"),
}


@pytest.mark.parametrize("name", DERIVED)
def test_a_derived_method_is_its_base_and_its_changes(tmp_path, name):
    module, base = DERIVED[name]
    path, digits = tmp_path / "mine.py", load_data("digits").subset(torch.arange(64))
    text = (
        f"from deepclust_nb.methods.{module} import {base}\nclass Mine({base}):\n    own_term = 2"
    )
    path.write_text(text)
    mine = own_method(f"{path}:Mine")
    plans = [make_plan(n, digits, 4, "ci", device="cpu") for n in (name, mine)]
    one, other = (build(plan)[0] for plan in plans)
    assert type(other).__name__ == "Mine" and other.own_term == 2
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(tensor.equal(states[1][key]) for key, tensor in states[0].items())
    recipes = [{**vars(plan.recipe), "expects": ""} for plan in plans]
    assert recipes[0] == recipes[1] and type(plans[0].recipe) is type(plans[1].recipe)


def test_a_derived_method_adds_a_setting(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from deepclust_nb.methods.ncc import NCC, NCCRecipe\n"
        "from deepclust_nb.recipes import setting\n"
        "@dataclass(frozen=True)\n"
        "class MineRecipe(NCCRecipe):\n"
        "    share: float = setting(0.5, 'of the term', 0)\n"
        "class Mine(NCC):\n"
        "    recipe = MineRecipe\n"
        "    def __init__(self, *args, share, **options):\n"
        "        super().__init__(*args, **options)\n"
        "        self.share = share\n"
    )
    name, digits = own_method(f"{path}:Mine"), load_data("digits")
    plan = make_plan(name, digits, profile="ci", device="cpu", settings={"share": "0.125"})
    assert build(plan)[0].share == 0.125
    assert plan.recipe.main_epochs == METHODS["ncc"].recipe(digits, "ci").main_epochs
    assert METHODS[name].extra == METHODS["ncc"].extra


# promises

BROKEN = {
    "writes": ("self.t.add_(1)", "loss writes no state"),
    "draws": ("import torch; batch = {'views': torch.rand_like(batch['views'])}", "same loss"),
    "hides": (
        "import torch; self.__dict__.setdefault('w', torch.rand(1)); "
        "batch = {'views': batch['views'] * self.w}",
        "a loaded state gives the same loss",
    ),
    "no dict": ("return batch['views'].mean()", "loss returns a dict"),
    "no gradient": ("return {'loss': batch['views'].mean()}", "depends on weights"),
    "nan": ("return {'loss': self.head.weight.sum() / 0}", "finite scalar loss"),
    "idle": (
        "return {'loss': self.net(batch['views']).mean()}",
        "not ['head.weight', 'head.bias']",
    ),
    "wrong": ("return {'loss': self.haed}", "mine.py, line 13"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_promise_is_named(file, deepclust, broken):
    line, says = BROKEN[broken]
    body = "def loss(self, idx, batch):\n"
    file.write_text(HEAD.replace(body, f"{body}        {line}\n"))
    done = deepclust("check", f"{file}:Mine", "--device", "cpu")
    assert done.code == 2 and done.err.count("\n") == 1
    assert says in done.err, done.err


@pytest.mark.parametrize("asked", ["mine", "byol"])
def test_check_says_what_is_kept(file, deepclust, asked):
    done = deepclust("check", f"{file}:Mine" if asked == "mine" else asked, "--device", "cpu")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [f"kept: {promise}" for promise in own.PROMISES]


def test_a_mistake_while_training_names_the_line_and_the_check(file, deepclust, tmp_path, tiny):
    file.write_text(HEAD.replace("-(p * q)", "-(p @ q)"))
    out = tmp_path / "run"
    done = deepclust(
        "train", f"{file}:Mine", "--data", "digits", "--limit", 60, "--out", out, *tiny
    )
    assert done.code == 2 and done.last.count("\n") == 1
    assert "mine.py, line 14" in done.last and f"deepclust check {file}:Mine" in done.last


# nothing is run that was not asked for


@pytest.mark.parametrize(
    "method", ["evil.py:X", "X", "os.system", "", "__import__", None, 3, ["evil.py:X"], {"a": 1}]
)
def test_a_run_folder_runs_no_file(tmp_path, deepclust, photo_run, pictures, monkeypatch, method):
    import shutil

    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\nclass X: pass\n")
    shutil.copytree(photo_run, tmp_path / "run")
    (tmp_path / "run" / "evil.py").write_text("open('ran', 'w').close()\nclass X: pass\n")
    file = tmp_path / "run/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"method": method}))
    new = pictures(tmp_path / "new", 2)
    for asked in (
        ["predict", "run", new],
        ["evaluate", "run"],
        ["howmany", "run"],
        ["export", "run", "m.pt"],
    ):
        done = deepclust(*asked)
        assert done.code == 2 and done.last.count("\n") == 1, done.err
    with pytest.raises(DeepClustError):
        load_run(tmp_path / "run", "cpu")
    assert not (tmp_path / "ran").exists()


def test_a_method_with_a_name_that_says_more_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("raise SystemExit('must not be run')")
    for name in ("X;import os", "../X", "X()", "a.b", "\x1b[2J"):
        with pytest.raises(DeepClustError, match="give FILE.py:NAME"):
            own_method(f"{path}:{name}")


def test_a_hostile_title_is_escaped_in_the_gallery(file, deepclust, tmp_path, tiny):
    file.write_text(HEAD.replace("Mine: for a test", "<script>alert(1)</script>"))
    out = tmp_path / "run"
    done = deepclust(
        "train",
        f"{file}:Mine",
        "--data",
        "digits",
        "--limit",
        60,
        "--epochs",
        1,
        "--out",
        out,
        *tiny,
    )
    assert done.code == 0, done.err
    assert "<script>alert" not in (out / "gallery.html").read_text(encoding="utf-8")
    assert math.isfinite(json.loads((out / "summary.json").read_text())["mass_entropy"])
