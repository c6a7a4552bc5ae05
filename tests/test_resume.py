"""A run that is left, killed or cut off, and taken up again, is the run that was left alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import DEVICE

EPOCHS, STOP, KILLS = 6, 2, 5
OPTIONS = "--data digits --limit 600 --profile ci --set width=4 --set log_every=1".split()
OPTIONS += f"--epochs {EPOCHS} --device {DEVICE}".split()

# One interpreter imports the library, then forks for every run, so that imports are paid once.
# A child that must die while it writes the checkpoint of epoch `at` ends in os.fsync, with half of
# the file on disk, or in os.replace, before the new file takes the old one's place.
RUNNER = """
import json, os, random, signal, sys, time, warnings
from pathlib import Path
from deepclust_nb import runs, train
from deepclust_nb.cli import main

top, options, kills = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])


def die_in(name, at):
    "Let this process end in os.fsync or os.replace of the checkpoint of epoch `at`."
    true, save, now = getattr(os, name), runs.RunFolder.save_checkpoint, []

    def fatal(first, *rest):
        if now and name == "fsync":
            os.ftruncate(first, os.fstat(first).st_size // 2)
        if now:
            os._exit(9)
        return true(first, *rest)

    def watched(self, state):
        now.extend([1] * (state["epoch"] == at))
        save(self, state)

    setattr(os, name, fatal)
    runs.RunFolder.save_checkpoint = watched


def start(folder, *more, fatal=None):
    "The process number of a training run; only some draw their figures, which takes longest."
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(top / (folder.name + ".log"), "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            if fatal:
                die_in(*fatal)
            if folder.name not in ("whole", f"killed{kills - 1}"):
                train.save_figures = lambda *rest: []
            main(["train", "mmdc", *options, "--out", str(folder), *more])
    except SystemExit as end:
        code = end.code or 0
    finally:
        os._exit(code)


def end(pid):
    "The exit code of a child, negative for a signal."
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for(path, pid):
    "The moment at which a file appears."
    while not path.exists():
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise SystemExit(f"ended before {path} appeared")
        time.sleep(0.0005)
    return time.monotonic()


def killed(folder, delay):
    "A run killed a while after its configuration is written: how it ended."
    pid = start(folder)
    wait_for(folder / "config.json", pid)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    return end(pid)


whole = top / "whole"
pid = start(whole)
begin = wait_for(whole / "config.json", pid)
trained = wait_for(whole / "clusters.png", pid) - begin  # figures are drawn after training
codes = {"whole": [end(pid)]}
everything = time.monotonic() - begin
codes["stopped"] = [end(start(top / "stopped", "--stop-after", sys.argv[4]))]
for i in range(kills):  # most of them while it trains, the last at any moment
    span = trained if i < kills - 1 else everything
    codes[f"killed{i}"] = [killed(top / f"killed{i}", random.Random(i).uniform(0, span))]
for name in ("fsync", "replace"):
    codes[name] = [end(start(top / name, fatal=(name, 3)))]
print(json.dumps({"codes": codes, "trained": trained, "everything": everything}))
sys.stdin.readline()  # the tests look at what is there, then ask to go on
for name in codes:
    if name != "whole":
        codes[name].append(end(start(top / name, "--resume")))
print(json.dumps(codes))
"""


def read_state(folder: Path) -> dict | None:
    "The checkpoint of a run, loaded as the library does, or None before the first."
    file = folder / "checkpoint.pt"
    return torch.load(file, map_location="cpu", weights_only=True) if file.exists() else None


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    "All runs of this page: how they ended, what the cut-off ones held, and how the rest went."
    top = tmp_path_factory.mktemp("resume")
    command = [sys.executable, "-c", RUNNER, str(top), json.dumps(OPTIONS), str(KILLS), str(STOP)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as runner:
        first = runner.stdout.readline()
        assert first, runner.stderr.read()
        left = {p.name: read_state(p) for p in top.iterdir() if p.is_dir()}
        parts = [p.parent.name for p in top.glob("*/checkpoint.pt.part")]
        last, err = runner.communicate("go on\n", timeout=300)
    assert runner.returncode == 0, err
    return {"top": top, "left": left, "parts": parts, "codes": json.loads(last)}


def differences(a, b, where: str = "checkpoint") -> list[str]:
    "Where two nested states differ; times may."
    if where.split(".")[-1] in ("seconds", "train_seconds"):
        return []
    if type(a) is not type(b):
        return [f"{where}: {type(a).__name__}, {type(b).__name__}"]
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict):
        found = [] if list(a) == list(b) else [f"{where}: {list(a)}, {list(b)}"]
        return found + [d for k in a if k in b for d in differences(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, (list, tuple)):
        found = [] if len(a) == len(b) else [f"{where}: {len(a)}, {len(b)} entries"]
        pairs = enumerate(zip(a, b))
        return found + [d for i, (x, y) in pairs for d in differences(x, y, f"{where}.{i}")]
    return [] if a == b else [f"{where}: {a!r}, {b!r}"]


def assert_same_run(a: Path, b: Path) -> None:
    "Every tensor and figure, every byte of the assignments, every line of the metrics."
    assert not differences(read_state(a), read_state(b))
    for name in ("assignments.csv", "metrics.jsonl"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    one, other = (json.loads((f / "summary.json").read_text(encoding="utf-8")) for f in (a, b))
    for name in ("acc", "nmi", "ari", "epochs", "stages", "baseline"):
        assert one[name] == other[name], name
    files = [sorted(p.name for p in f.rglob("*") if p.suffix != ".png") for f in (a, b)]
    assert files[0] == files[1]


def test_comparison_notices_one_changed_number():
    state = {"method": {"w": torch.ones(3)}, "optimiser": [{"lr": 0.1}], "seconds": 1.0}
    other = {"method": {"w": torch.ones(3)}, "optimiser": [{"lr": 0.1}], "seconds": 2.0}
    assert not differences(state, other)
    other["method"]["w"][1] += 1e-7
    other["optimiser"][0]["lr"] = 0.2
    found = differences(state, other)
    assert found == ["checkpoint.method.w", "checkpoint.optimiser.0.lr: 0.1, 0.2"]


def test_checkpoint_holds_momentum_and_random_state(trials):
    state = read_state(trials["top"] / "whole")
    assert state["epoch"] == EPOCHS and state["finished"]
    momenta = [s["momentum_buffer"] for s in state["optimiser"]["state"].values()]
    assert momenta and all(m.abs().sum() > 0 for m in momenta)
    assert state["rng"].dtype == torch.uint8 and state["step"] > 0


def test_stopped_and_resumed_equals_undisturbed(trials):
    assert trials["codes"]["stopped"] == [0, 0]
    assert trials["left"]["stopped"]["epoch"] == STOP
    assert_same_run(trials["top"] / "stopped", trials["top"] / "whole")


@pytest.mark.parametrize("i", range(KILLS))
def test_killed_at_a_random_moment_and_resumed_equals_undisturbed(trials, i):
    ended, resumed = trials["codes"][f"killed{i}"]
    assert ended in (-9, 0) and resumed == 0
    assert_same_run(trials["top"] / f"killed{i}", trials["top"] / "whole")


def test_figures_are_drawn_after_a_kill(trials):
    for figure in (trials["top"] / "whole").glob("*.png"):
        assert (trials["top"] / f"killed{KILLS - 1}" / figure.name).exists()


def test_some_kills_fell_into_training(trials):
    killed = [state for name, state in trials["left"].items() if name.startswith("killed")]
    epochs = [state["epoch"] if state else 0 for state in killed]
    assert min(epochs) < EPOCHS, f"all were finished when they were killed: {epochs}"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_death_while_the_checkpoint_is_written_leaves_the_previous_one_whole(trials, call):
    assert trials["codes"][call] == [9, 0]
    assert call in trials["parts"]
    assert trials["left"][call]["epoch"] == 2
    assert_same_run(trials["top"] / call, trials["top"] / "whole")


# Within this process


@pytest.fixture
def train(deepclust, tiny, tmp_path, no_figures):
    "Train 100 digits for four epochs into a folder."

    def call(name: str, *more):
        options = ["--data", "digits", "--limit", 100, "--epochs", 4, "--out", tmp_path / name]
        return deepclust("train", "mmdc", *options, *tiny, *more)

    return call


def test_several_stops_equal_none(train, tmp_path):
    assert train("whole").code == 0
    for stop in (1, 3):
        done = train("parts", "--stop-after", stop, "--resume")
        assert done.code == 0, done.err
        assert read_state(tmp_path / "parts")["epoch"] == stop
    assert train("parts", "--resume").code == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


REMEMBERED = {
    "scl": "",
    "moco": "",
    "lsdc": "",
    "byol": "every=2",
    "ncc": "queue=64 balanced=true warmup=0.3 bs=25",
    "digpro": "period=3 slots=60 bs=25",
    "instance": "",
    "rotnet": "",
    "nat": "",
}


@pytest.mark.parametrize("method", REMEMBERED)
def test_every_method_is_taken_up_bit_for_bit(deepclust, tiny, tmp_path, no_figures, method):
    "Banks, slow copies, groups and pseudo-labels are in the checkpoint too."
    tiny = [*tiny, *(part for way in REMEMBERED[method].split() for part in ("--set", way))]
    for name, stops in (("whole", [None]), ("parts", [1, None])):
        for stop in stops:
            options = ["--data", "digits", "--limit", 100, "--epochs", 3, "--init", "random"]
            options += ["--stop-after", stop] if stop else []
            done = deepclust("train", method, *options, *tiny, "--out", tmp_path / name, "--resume")
            assert done.code == 0, done.err
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_rare_looks_at_the_clusters_do_not_change_the_run(train, tmp_path):
    assert train("whole", "--set", "log_every=3").code == 0
    assert train("parts", "--set", "log_every=3", "--stop-after", 1).code == 0
    assert train("parts", "--set", "log_every=3", "--resume").code == 0
    a, b = tmp_path / "parts", tmp_path / "whole"
    assert not differences(read_state(a), read_state(b))
    assert (a / "assignments.csv").read_bytes() == (b / "assignments.csv").read_bytes()


def test_stop_before_what_is_done_changes_nothing(train, tmp_path):
    train("run", "--stop-after", 3)
    before = read_state(tmp_path / "run")
    done = train("run", "--stop-after", 2, "--resume")
    assert done.code == 0, done.err
    assert not differences(read_state(tmp_path / "run"), before)


def test_pretraining_is_taken_up_too(train, tmp_path, monkeypatch):
    from deepclust_nb import engine

    assert train("whole", "--init", "rotnet").code == 0
    log, lines = engine.log_epoch, []

    def dies(run, *rest):
        lines.append(run.epoch)
        if len(lines) == 3:
            raise KeyboardInterrupt
        log(run, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "log_epoch", dies)
        done = train("parts", "--init", "rotnet")
    assert done.code == 130
    assert done.last.strip().startswith("deepclust: stopped") and "Traceback" not in done.err
    assert (tmp_path / "parts" / "init" / "checkpoint.pt").exists()
    assert not (tmp_path / "parts" / "checkpoint.pt").exists()
    done = train("parts", "--init", "rotnet", "--resume")
    assert done.code == 0, done.err
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_resume_of_a_finished_run_loses_nothing(train, tmp_path, listing):
    assert train("run").code == 0
    before = listing(tmp_path)
    done = train("run", "--resume")
    after = listing(tmp_path)
    assert done.code in (0, 2) and "Traceback" not in done.err
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"run/summary.json", "run/gallery.html"}  # they tell the memory in use
    with_times = ("seconds", "images_per_second")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert all(summary[name] > 0 for name in with_times)


def test_resume_where_nothing_is_begins(train, tmp_path):
    assert train("new", "--resume").code == 0
    assert read_state(tmp_path / "new")["finished"]


def test_half_a_line_of_metrics_is_dropped(train, tmp_path):
    train("whole")
    train("parts", "--stop-after", 2)
    with open(tmp_path / "parts" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"epoch": 3, "sta')
    done = train("parts", "--resume")
    assert done.code == 0, done.err
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_files_of_a_lost_epoch_do_not_disturb_a_shorter_resume(deepclust, tmp_path, tiny):
    options = ["--data", "digits", "--limit", 60, "--epochs", 4, "--stop-after", 2, *tiny]
    options += ["--out", tmp_path]
    assert deepclust("train", "mmdc", *options).code == 0
    lost = tmp_path / "epochs" / "0003.npz"  # written, but its checkpoint never was
    lost.write_bytes((tmp_path / "epochs" / "0002.npz").read_bytes())
    done = deepclust("train", "mmdc", *options, "--resume")
    assert done.code == 0, done.crash


def test_seeds_are_taken_up(train, tmp_path):
    assert train("whole", "--seeds", "0,1").code == 0
    assert train("parts", "--seeds", "0,1", "--stop-after", 2).code == 0
    done = train("parts", "--seeds", "0,1", "--resume")
    assert done.code == 0, done.err
    for seed in ("seed0", "seed1"):
        assert_same_run(tmp_path / "parts" / seed, tmp_path / "whole" / seed)
