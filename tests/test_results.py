"Every file of results/ says what was measured, how, and on what."

import json

import pytest

from conftest import ROOT

FILES = sorted((ROOT / "results").glob("*.json"))
HEAD = {"claim", "fidelity", "paper", "protocol", "records"}
RECORD = {
    *(
        "variant",
        "commit",
        "cores",
        "method",
        "data",
        "n",
        "k",
        "profile",
        "seed",
        "epochs",
        "recipe",
    ),
    *("acc", "nmi", "ari", "baseline", "stages", "curve", "seconds", "images_per_second"),
    *("peak_memory_mb", "device", "threads", "versions"),
}


def test_there_are_results():
    "The lessons draw these."
    mmdc = {"mmdc_digits", "mmdc_mnist10k", "mmdc_digits_parts"}
    lsdc = {"lsdc_digits", "lsdc_mnist5k", "lsdc_digits_parts", "lsdc_mnist_parts"}
    scl = {"scl_digits", "scl_mnist5k", "scl_digits_parts"}
    assert mmdc | lsdc | scl | {"chain_digits"} <= {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_record(file):
    "All keys are there, figures are in range, and a variant has three seeds, or the claim is of one."
    result = json.loads(file.read_text())
    assert result.keys() == HEAD
    seeds = {}
    for record in result["records"]:
        assert record.keys() >= RECORD, RECORD - record.keys()
        assert all(-0.5 <= record[name] <= 1 for name in ("acc", "nmi", "ari"))
        assert record["baseline"]["acc"] is not None and record["curve"]
        seeds.setdefault(record["variant"], set()).add(record["seed"])
    least = 1 if "one seed" in result["claim"] else 3
    assert all(len(found) >= least for found in seeds.values()), seeds
