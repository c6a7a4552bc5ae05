"Every file of results/ says what was measured, how, and on what; its figures agree with one another."

import copy
import json

import pytest
from jsonschema import Draft202012Validator

from conftest import ROOT
from deepclust_nb.baselines import CLASSICAL

FILES = sorted((ROOT / "results").glob("*.json"))
SCHEMA = json.loads((ROOT / "tools" / "results.schema.json").read_text())
CHECK = Draft202012Validator(SCHEMA)


def problems(result: dict) -> list[str]:
    "What the schema finds, a line each: where, and what."
    return [f"{error.json_path}: {error.message[:200]}" for error in CHECK.iter_errors(result)]


def test_there_are_results():
    "The lessons and the ledger draw these."
    mmdc = {"mmdc_digits", "mmdc_mnist10k", "mmdc_mnist", "mmdc_digits_parts"}
    lsdc = {"lsdc_digits", "lsdc_mnist5k", "lsdc_digits_parts", "lsdc_mnist_parts"}
    scl = {"scl_digits", "scl_mnist5k", "scl_digits_parts"}
    classical = {f"classical_{name}" for name in ("digits", "rsod", "uc_merced", "mnist10k")}
    chain = {
        "chain_digits",
        "chain_digits_parts",
        "rsod",
        "uc_merced",
        "photos_uc_merced",
        "photos_rsod",
    }
    studies = {"imbalance", "imbalance_parts", "baselines_mnist10k", "augmentation", "health"}
    assert mmdc | lsdc | scl | classical | chain | studies <= {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_schema(file):
    "All keys are there, and figures are in range."
    assert problems(json.loads(file.read_text())) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_seeds(file):
    "A variant has three seeds, or the claim is of one; no seed comes twice."
    result = json.loads(file.read_text())
    seeds = {}
    for record in result["records"]:
        seeds.setdefault(record["variant"], []).append(record["seed"])
    least = 1 if "one seed" in result["claim"] else 3
    assert all(len(set(found)) >= least for found in seeds.values()), seeds
    assert all(len(set(found)) == len(found) for found in seeds.values()), seeds


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_figures_agree(file):
    "What a record says twice it says alike: no figure was changed by hand."
    for record in json.loads(file.read_text())["records"]:
        if "expected" in record or "classes" in record:
            continue
        assert record["clusters_used"] <= record["k"] <= record["n"]
        if record["profile"] == "classical":
            rate = record["n"] / record["seconds"]
            assert record["images_per_second"] == pytest.approx(rate, rel=0.01)
            continue
        epoch, acc = record["curve"][-1]
        assert epoch == record["epochs"] and record["acc"] == pytest.approx(acc, abs=1e-4)
        assert list(record["stages"].values())[-1]["acc"] == record["acc"]
        stages = [v for name, v in record["recipe"].items() if name.endswith("_epochs")]
        assert record["epochs"] == sum(stages)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_hours_and_hardware_agree(file):
    "Records from before these were kept have neither; where they stand they say what the rest says."
    for record in json.loads(file.read_text())["records"]:
        if "expected" in record:  # a diagnosis is not timed
            continue
        start = (record.get("start") or {}).get("seconds") or 0
        hours = (record["seconds"] + start) * record.get("processes", 1) / 3600
        assert record.get("device_hours", hours) == pytest.approx(hours, abs=1e-4)
        there = record.get("hardware", {"gpu": record["device"], "cores": record["cores"]})
        assert there["cores"] == record["cores"]
        assert record["device"] == "cpu" or there["gpu"]
        asked = record.get("recipe", {}).get("precision") or record.get("precision")
        assert record.get("precision") in (None, asked)


def a_gpu(**wrong) -> dict:
    "What a record says of a machine."
    return {"gpu": "a GPU", "gpu_memory_mb": 8192, "cpu": "a CPU", "cores": 2} | wrong


def test_a_record_may_say_more_than_an_old_one():
    more = trained()
    new = {"hardware": a_gpu(), "precision": "bf16", "processes": 2, "device_hours": 0.5}
    more["records"][0] |= new
    assert problems(more) == []


def count() -> dict:
    return json.loads((ROOT / "results" / "how_many.json").read_text())


def test_how_many_holds_what_it_claims():
    "Eight of ten ranges hold K, none is wider than 30 % around its middle, nothing is seen in noise."
    ranges = [(r["k"], r["found"]["low"], r["found"]["high"]) for r in count()["records"]]
    assert len([r for r in ranges if r[0] >= 3]) == 10 and len(ranges) == 14
    held = [low is not None and low <= k <= high for k, low, high in ranges if k >= 3]
    assert sum(held) >= 8
    assert all(b - a <= 0.3 * (a + b) for k, a, b in ranges if a is not None)
    assert all(low is None for k, low, _ in ranges if k < 2)


def test_all_seven_were_run():
    "The names of the claims are those of the library."
    assert {r["variant"] for r in classical()["records"]} == CLASSICAL.keys()
    assert all(r["variant"] == r["method"] for r in classical()["records"])


def classical() -> dict:
    return json.loads((ROOT / "results" / "classical_digits.json").read_text())


def trained() -> dict:
    return json.loads((ROOT / "results" / "lsdc_mnist5k.json").read_text())


@pytest.mark.parametrize(
    ("make", "path", "value"),
    [
        (trained, ("protocol",), None),
        (trained, ("fidelity",), ""),
        (trained, ("paper", "table"), None),
        (trained, ("paper", "acc"), 98.6),
        (trained, ("note",), "by hand"),
        (trained, ("records",), []),
        (trained, ("records", 0, "acc"), None),
        (trained, ("records", 0, "nmi"), 1.1),
        (trained, ("records", 0, "seed"), -1),
        (trained, ("records", 0, "seconds"), 0),
        (trained, ("records", 0, "device"), "abacus"),
        (trained, ("records", 0, "profile"), "quick"),
        (trained, ("records", 0, "curve"), []),
        (trained, ("records", 0, "curve", 0), [5]),
        (trained, ("records", 0, "recipe"), {"width": 16}),
        (trained, ("records", 0, "baseline"), {"acc": 0.5}),
        (trained, ("records", 0, "start"), {"acc": 0.5}),
        (trained, ("records", 0, "profile"), "classical"),
        (trained, ("records", 0, "hardware"), {"gpu": "a GPU"}),
        (trained, ("records", 0, "hardware"), a_gpu(cores=0)),
        (trained, ("records", 0, "hardware"), a_gpu(gpu="")),
        (trained, ("records", 0, "hardware"), a_gpu(price=1)),
        (trained, ("records", 0, "precision"), "float16"),
        (trained, ("records", 0, "processes"), 0),
        (trained, ("records", 0, "device_hours"), -1),
        (count, ("records", 0, "found", "low"), 1),
        (count, ("records", 0, "classes"), None),
        (classical, ("records", 0, "how"), ""),
        (classical, ("records", 0, "profile"), "laptop"),
    ],
)
def test_what_is_wrong_is_named(make, path, value):
    "A change of one value in a good file."
    assert problems(make()) == []
    wrong = copy.deepcopy(make())
    inside = wrong
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    assert any(path[0] in line for line in problems(wrong))


@pytest.mark.parametrize("name", [*SCHEMA["$defs"]["record"]["required"], "acc", "curve", "recipe"])
def test_what_is_missing_is_named(name):
    "No key of a run may be left out."
    wrong = trained()
    del wrong["records"][0][name]
    assert any(f"'{name}' is a required" in line for line in problems(wrong))
