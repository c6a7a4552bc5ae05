"""The slow runs over several seeds behind the claims, written to results/*.json.

    python tools/evidence.py                          every claim
    python tools/evidence.py mmdc_digits ...          these only
    python tools/evidence.py --list                   what there is, and what is missing
    python tools/evidence.py --data-root DIR ...      folder that holds torchvision's files

A run that is in the file already is not made again; --again makes it again. One that was interrupted goes on from its last epoch. Recipes were tuned on seeds 5 and above, the
claims are on seeds 0, 1 and 2.
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PROTOCOL = "trained and scored on the same images; labels used for scoring only; last epoch"
PROTOCOL_HEALTH = (
    "limits chosen on seeds 5 and 6, the order of the names on seeds 0 to 2, where 40 of 45 were "
    "right; labels used for nothing but the ACC; the first name counts"
)
PROTOCOL_PIXELS = "clustered and scored on the same images; labels used for scoring only"
CLUSTER = """
import json, sys
from deepclust_nb.baselines import one_classical
from deepclust_nb.data import load_data
from deepclust_nb.train import limited

asked, name, seed = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
limit = asked.pop("limit", None)
data = limited(load_data(**asked), limit)
print(json.dumps(one_classical(data, name, data.k, seed)))
"""
COUNT = """
import json, sys, time
from deepclust_nb.data import load_data
from deepclust_nb.howmany import ask, noise_like, some_classes
from deepclust_nb.train import surroundings

case, seed, root = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3] or None
data = load_data(case["data"], root=root)
begin = time.time()
if case["k"]:
    data = some_classes(data, case["k"], case["each"], seed)
else:
    data = noise_like(data, case["each"], seed)
told = {"progress": False, "say": lambda line: print(line, file=sys.stderr), "device": "cpu"}
found, _, _ = ask(data, seed=seed, profile="laptop", **told)
names = [] if data.y is None else [data.classes[i] for i in data.y.unique().tolist()]
record = case | {"method": "moco", "profile": "laptop", "classes": names, "images": len(data)}
record |= {"seed": seed, "seconds": round(time.time() - begin, 1), "device": "cpu"}
print(json.dumps(record | {"found": found.as_dict()} | surroundings()))
"""
PROTOCOL_COUNT = (
    "trained on the images of the case alone, without labels and without K; classes are read to draw "
    "the case and to count it; the rules were set on the cases of how_many_tuning"
)


SCORE = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from deepclust_nb.data import load_data
from deepclust_nb.metrics import score
from deepclust_nb.runs import RunFolder
from deepclust_nb.train import pixel_baseline, rounded

folder, out, classes = Path(sys.argv[1]), RunFolder(sys.argv[2]), json.loads(sys.argv[3])
config = out.config()
data = load_data(folder, config["data"]["shape"][1])
kinds = sorted(set(classes.values()))
y = torch.tensor([kinds.index(classes[data.name(i)]) for i in range(len(data))])
curve = {epoch: rounded(score(y, look["assign"])) for epoch, look in out.epochs().items()}
names = ("mass_entropy", "clusters_used")
last = {name: out.metrics()[-1][name] for name in names} | list(curve.values())[-1]
record = list(curve.values())[-1] | {"curve": [[e, found["acc"]] for e, found in curve.items()]}
record["baseline"] = rounded(pixel_baseline(replace(data, y=y), config["k"]))
print(json.dumps(record | {"recipe": config["recipe"], "stages": {"main": rounded(last)}}))
"""
PROTOCOL_PHOTOS = (
    "the images of all classes in one folder under numbers for names, drawn and numbered by the seed, "
    "given to `deepclust cluster FOLDER --k K --seed S`, all else as it is by default; classes are read "
    "afterwards, to score; other work ran on the same two cores: `load` is that of the machine "
    "over 1, 5 and 15 minutes at the end; the defaults were chosen on seed 5 of UC-Merced, and the rate halved after 80 images of RSOD diverged"
)


def count_cases(digits: list[int], mnist: list[int], each: int) -> dict[str, dict]:
    "Names of the cases: all digits of k classes, or so many MNIST images of each; 0: noise."
    cases = {}
    for data, ks, n in (("digits", digits, 1000), ("mnist", mnist, each)):
        for k in ks:
            what = {0: "noise", 1: "one class"}.get(k, f"{k} classes")
            case = {"data": data, "k": k, "each": 1000 if k < 2 else n}
            cases[f"{data}, {what}"] = case
    return cases


BREAK_IT = {
    "MMDC": [],
    "targets drawn one by one": ["balanced=False"],
    "squared cost": ["cost=sqeuclidean"],
    "plain distance as loss": ["pull=distance"],
    "no refinement": ["main_epochs=40", "refine_epochs=0"],
    "refinement only": ["main_epochs=0", "refine_epochs=40"],
    "random means": ["means=random"],
    "variance 0.05": ["var=0.05", "refine_epochs=0", "main_epochs=40"],
    "rotation task": ["rotation=True"],
    "edges instead of grey levels": ["sobel=True"],
    "nearest target": ["rule=nearest_target"],
    "targets kept": ["rule=keep", "refine_epochs=0", "main_epochs=40"],
}
PAIRS = {
    "LSD-C": [],
    "RICAP": ["mixing=ricap"],
    "no mixing": ["mixing=none"],
    "no consistency": ["calm=0"],
    "cosine": ["rule=cosine"],
    "SNE": ["rule=sne"],
    "L2": ["rule=l2"],
    "kNN on predictions": ["space=predictions"],
    "random start": ["init=random"],
    "augmented view labelled": ["plain=augmented"],
    "labels mixed as released": ["axis=release"],
}
BANKS = {
    "SCL": [],
    "no balance": ["balance=none"],
    "sharpened, not balanced": ["balance=sharpen"],
    "entropy weight instead": ["balance=none", "even=2"],
    "labels of the classifier": ["judge=head"],
    "labels of the classifier, no balance": ["judge=head", "balance=none"],
    "not centred": ["centre=False"],
    "not centred, no balance": ["centre=False", "balance=none"],
    "all three left out": ["judge=head", "balance=none", "centre=False"],
    "labels once an epoch": ["refresh=epoch"],
    "warm-up and k-means": ["warm_epochs=20", "main_epochs=40"],
    "no slow copy": ["momentum=0"],
    "features untouched by the classifier": ["shapes=False"],
    "banks of 4": ["slots=4"],
    "banks of 64": ["slots=64"],
    "temperature 0.2": ["tau=0.2"],
}
CHAIN = {"BYOL": ["byol"], "NCC": ["ncc"], "DigPro": ["digpro"]}
CHAIN_PARTS = {
    "BYOL": ["byol"],
    "no noise": ["ncc", "sigma=0"],
    "no prototypes": ["ncc", "weight=0"],
    "NCC": ["ncc"],
    "noise 0.1": ["ncc", "sigma=0.1"],
    "prototypes at 0.1": ["ncc", "weight=0.1"],
    "prototypes at 1": ["ncc", "weight=1"],
    "soft membership": ["ncc", "soft=0.1"],
    "balanced draws": ["ncc", "balanced=true"],
    "momentum constant": ["ncc", "top=0.98"],
    "predictor at the common rate": ["ncc", "faster=1"],
    "DigPro": ["digpro"],
    "groups only": ["digpro", "weight=0"],
    "groups at 0.3": ["digpro", "group_weight=0.3"],
    "groups at 1": ["digpro", "group_weight=1"],
    "groups once an epoch": ["digpro", "pace=epoch"],
    "never placed anew": ["digpro", "period=0"],
    "crowded start, never placed anew": ["digpro", "period=0", "start=orthant"],
    "groups detached, old": ["digpro", "against=old"],
    "raw lengths": ["digpro", "length=raw"],
    "twice the groups": ["digpro", "groups=20"],
    "bank of 256": ["digpro", "slots=256", "period=5"],
    "read off groups": ["digpro", "read=groups"],
}
CLASSICAL = {  # names in deepclust_nb.baselines
    name: [] for name in "k-means,spectral,agglomerative,NMF,PCA + k-means,BIRCH,GMM".split(",")
}
SELF_SUPERVISED = {
    "RotNet + k-means": ["rotnet"],
    "NAT + k-means": ["nat"],
    "MoCo + k-means": ["moco"],
    "BYOL + k-means": ["byol"],
}
WITH_MOCO = {"SCL": ["scl"], "MoCo + k-means": ["moco"]}
CI, LAPTOP = "--profile=ci", "--profile=laptop"
DIAGNOSED = {  # What is done -> what it is to be called ("": nothing), and how it is done
    "MMDC": ("", ["mmdc", LAPTOP]),
    "LSD-C": ("", ["lsdc", LAPTOP]),
    "SCL": ("", ["scl", LAPTOP]),
    "NCC": ("", ["ncc", LAPTOP]),
    "DigPro": ("", ["digpro", LAPTOP]),
    "MMDC, nearest target": ("all images in one cluster", ["mmdc", CI, "rule=nearest_target"]),
    "LSD-C, every pair alike": (
        "all images in one cluster",
        ["lsdc", CI, "init=random", "rule=l2", "threshold=1e6"],
    ),
    "SCL, labels of the classifier, no balance": (
        "few clusters hold all images",
        ["scl", CI, "judge=head", "balance=none"],
    ),
    "MMDC, rate 50": ("learning rate too high", ["mmdc", CI, "lr=50"]),
    "SCL, rate 30": ("learning rate too high", ["scl", CI, "lr=30"]),
    "NCC, rate 50": ("learning rate too high", ["ncc", CI, "lr=50"]),
    "MMDC, rate 1e20": ("learning rate too high", ["mmdc", CI, "lr=1e20"]),
    "MMDC, rate 1e-6": ("nothing learned", ["mmdc", CI, "lr=1e-6"]),
    "NCC, rate 1e-7": ("nothing learned", ["ncc", CI, "lr=1e-7"]),
    "SCL, temperature 100": ("loss knows nothing", ["scl", CI, "tau=100"]),
    "MMDC, targets kept": (
        "loss knows nothing",
        ["mmdc", CI, "rule=keep", "refine_epochs=0", "main_epochs=40"],
    ),
    "MMDC, variance 5": (
        "clusters cut across the features",
        ["mmdc", CI, "var=5", "refine_epochs=0", "main_epochs=40"],
    ),
    "BYOL, predictor at rest, no slow copy": (
        "features collapsed to few dimensions",
        ["byol", CI, "faster=0", "momentum=0", "top=0"],
    ),
    "SCL, two epochs": ("too few steps", ["scl", CI, "--epochs=2"]),
    "MMDC, 200 clusters": ("too many clusters", ["mmdc", CI, "--k=200"]),
}
FIVE = {"MMDC": "mmdc", "LSD-C": "lsdc", "SCL": "scl", "NCC": "ncc", "DigPro": "digpro"}
UNEVEN = {  # Equally many images, 745 or so; {seed}: of the run, so each seed has other large classes
    "1 to 1": ["--limit=745"],
    "1 to 3": ["--limit=1125", "--long-tail=3,{seed}"],
    "1 to 10": ["--long-tail=10,{seed}"],
}
LET_GO = {  # What the papers, or a setting of ours, offer against the assumption of equal sizes
    "MMDC, heaps fall by 10": ["mmdc", "falls=10"],
    "LSD-C, pairs by SNE": ["lsdc", "rule=sne"],
    "SCL, sharpened, not balanced": ["scl", "balance=sharpen"],
    "NCC, balanced draws": ["ncc", "balanced=true"],  # the other way: assumes more
}
POLICY = {  # What BYOL's views of digits may change
    "its own": [],
    "light only": ["degrees=0", "shift=0", "zoom=0"],
    "no light": ["jitter=0"],
    "and flips": ["flip=True"],
    "any angle": ["degrees=180"],
    "crops from 8 %": ["area=0.08", "size=8", "degrees=0", "shift=0", "zoom=0"],
}
CLAIMS = {
    "augmentation": {
        "short": True,
        "claim": "BYOL on scikit-learn's digits under six policies of augmentation, profile ci",
        "args": ["byol", "--data", "digits", CI],
        "variants": POLICY,
        "fidelity": "the images themselves, 8x8",
        "paper": None,
    },
    "imbalance": {
        "short": True,
        "claim": "Accuracy against imbalance, digits, 745 images, classes equal or falling geometrically to a third or a tenth",
        "args": ["--data", "digits", CI, "--epochs=80", "--set", "log_every=20"],
        "variants": {
            f"{name}, {ratio}": [method, *images]
            for ratio, images in UNEVEN.items()
            for name, method in FIVE.items()
        },
        "fidelity": "the images themselves, 8x8; a part of the 1,797, cut by class with labels",
        "paper": None,
    },
    "imbalance_parts": {
        "short": True,
        "claim": "What letting go of equal sizes does, digits, classes falling to a tenth",
        "args": ["--data", "digits", CI, "--epochs=80", "--set", "log_every=20"],
        "variants": {name: [*how, *UNEVEN["1 to 10"]] for name, how in LET_GO.items()},
        "fidelity": "the images themselves, 8x8; a part of the 1,797, cut by class with labels",
        "paper": None,
    },
    "health": {
        "claim": "Whether provoked failures are named, and healthy runs left alone, digits",
        "args": ["--data", "digits"],
        "expects": {name: expected for name, (expected, _) in DIAGNOSED.items()},
        "seeds": [10, 11, 12],
        "variants": {name: changes for name, (_, changes) in DIAGNOSED.items()},
        "fidelity": "the images themselves, 8x8",
        "paper": None,
    },
    "mmdc_digits": {
        "claim": "MMDC on scikit-learn's digits, profile laptop",
        "args": ["mmdc", "--data", "digits", "--profile", "laptop"],
        "variants": {"MMDC": []},
        "fidelity": "the images themselves, 8x8",
        "paper": None,
    },
    "mmdc_mnist10k": {
        "claim": "MMDC on 10,000 images of MNIST, VGG-4, profile laptop",
        "args": ["mmdc", "--data", "mnist", "--limit", "10000", "--profile", "laptop"],
        "variants": {"MMDC": []},
        "fidelity": "lossless; 10,000 of the 70,000 images of the merged set, drawn once",
        "paper": {
            "table": "V",
            "data": "MNIST, 70,000 images",
            "acc": 0.990,
            "nmi": 0.971,
            "before": 0.981,
        },
    },
    "mmdc_mnist": {
        "claim": "MMDC on all of MNIST with the paper's schedule, VGG-4, profile full, in bfloat16",
        "args": ["mmdc", "--data", "mnist", "--profile", "full", "--precision", "bf16"],
        "variants": {"MMDC": []},
        "fidelity": "lossless; the merged set, 70,000 images",
        "paper": {
            "table": "I",
            "data": "MNIST, 70,000 images",
            "acc": 0.990,
            "nmi": 0.971,
            "before": 0.981,
        },
    },
    "mmdc_digits_parts": {
        "claim": "What each part of MMDC does, digits, profile ci",
        "args": ["mmdc", "--data", "digits", "--profile", "ci"],
        "variants": BREAK_IT,
        "fidelity": "the images themselves, 8x8",
        "paper": None,
    },
    "lsdc_digits": {
        "claim": "LSD-C on scikit-learn's digits, profile laptop",
        "args": ["lsdc", "--data", "digits", "--profile", "laptop"],
        "variants": {"LSD-C": []},
        "fidelity": "the images themselves, 8x8",
        "paper": None,
    },
    "lsdc_mnist5k": {
        "claim": "LSD-C on 5,000 images of MNIST, VGG-4 of width 16, profile laptop",
        "args": ["lsdc", "--data", "mnist", "--limit", "5000", "--profile", "laptop"],
        "variants": {"LSD-C": []},
        "fidelity": "lossless; 5,000 of the 70,000 images of the merged set, drawn once",
        "paper": {"table": "poster", "data": "MNIST, 70,000 images", "acc": 0.986, "nmi": None},
    },
    "lsdc_digits_parts": {
        "claim": "What each part of LSD-C does, digits, profile ci",
        "args": ["lsdc", "--data", "digits", "--profile", "ci"],
        "variants": PAIRS,
        "fidelity": "the images themselves, 8x8",
        "paper": None,
    },
    "lsdc_mnist_parts": {
        "claim": "What each part of LSD-C does, 5,000 images of MNIST, profile ci",
        "args": ["lsdc", "--data", "mnist", "--limit", "5000", "--profile", "ci"],
        "variants": {
            name: PAIRS[name]
            for name in ("LSD-C", "no mixing", "no consistency", "kNN on predictions")
        },
        "fidelity": "lossless; 5,000 of the 70,000 images of the merged set, drawn once",
        "paper": None,
    },
    "scl_digits": {
        "claim": "SCL and MoCo with k-means on scikit-learn's digits, profile laptop",
        "args": ["--data", "digits", "--profile", "laptop"],
        "variants": WITH_MOCO,
        "fidelity": "the images themselves, 8x8",
        "paper": None,
        "probe": True,
    },
    "scl_mnist5k": {
        "claim": "SCL and MoCo with k-means on 5,000 images of MNIST, VGG-4 of width 16, profile laptop",
        "args": ["--data", "mnist", "--limit", "5000", "--profile", "laptop"],
        "variants": WITH_MOCO,
        "fidelity": "lossless; 5,000 of the 70,000 images of the merged set, drawn once",
        "paper": None,
        "probe": True,
    },
    "scl_digits_parts": {
        "claim": "What each part of SCL does, digits, profile laptop",
        "args": ["scl", "--data", "digits", "--profile", "laptop"],
        "variants": BANKS,
        "fidelity": "the images themselves, 8x8",
        "paper": None,
    },
    "chain_digits": {
        "claim": "BYOL, NCC and DigPro on scikit-learn's digits, profile laptop",
        "args": ["--data", "digits", "--profile", "laptop"],
        "variants": CHAIN,
        "fidelity": "the images themselves, 8x8",
        "paper": None,
        "probe": True,
    },
    "chain_digits_parts": {
        "claim": "What each part of BYOL, NCC and DigPro does, digits, profile ci",
        "args": ["--data", "digits", "--profile", "ci"],
        "variants": CHAIN_PARTS,
        "fidelity": "the images themselves, 8x8",
        "paper": None,
    },
    "rsod": {
        "claim": "BYOL, NCC and DigPro on 936 images of RSOD at 32 px, narrow ResNet-18, profile laptop",
        "args": ["--data", "rsod", "--profile", "laptop"],
        "variants": CHAIN,
        "fidelity": "936 of the 976 images, JPEG, shrunk to 96 px; 64 exact duplicates",
        "paper": {
            "table": "1",
            "data": "RSOD, 976 images, BigResNet-18, 1000 epochs",
            "ProPos": {"acc": 0.632, "nmi": 0.351, "ari": 0.272},
            "DigPro": {"acc": 0.590, "nmi": 0.507, "ari": 0.441},
        },
    },
    "uc_merced": {
        "claim": "BYOL, NCC and DigPro on UC-Merced at 32 px, narrow ResNet-18, profile laptop, one seed",
        "args": ["--data", "uc-merced", "--profile", "laptop"],
        "variants": CHAIN,
        "fidelity": "all 2,100 images, JPEG, shrunk from 256 to 96 px",
        "paper": {
            "table": "1",
            "data": "UC-Merced, 2,100 images, BigResNet-18, 1000 epochs",
            "ProPos": {"acc": 0.576, "nmi": 0.614, "ari": 0.416},
            "DigPro": {"acc": 0.595, "nmi": 0.633, "ari": 0.453},
        },
    },
    "baselines_digits": {
        "claim": "NAT, RotNet and instance discrimination with k-means, digits, profile laptop",
        "args": ["--data", "digits", "--profile", "laptop"],
        "variants": {
            "NAT + k-means": ["nat"],
            "RotNet + k-means": ["rotnet"],
            "instance + k-means": ["instance"],
        },
        "fidelity": "the images themselves, 8x8",
        "paper": None,
    },
    "baselines_mnist10k": {
        "claim": "Self-supervised features with k-means, NCC and DigPro, 10,000 images of MNIST, VGG-4, profile laptop",
        "args": ["--data", "mnist", "--limit", "10000", "--profile", "laptop"],
        "variants": SELF_SUPERVISED | {"NCC": ["ncc"], "DigPro": ["digpro"]},
        "fidelity": "lossless; 10,000 of the 70,000 images of the merged set, drawn once",
        "paper": None,
    },
    "baselines_uc_merced": {
        "claim": "RotNet, NAT and MoCo with k-means on UC-Merced at 32 px, narrow ResNet-18, profile laptop",
        "args": ["--data", "uc-merced", "--size", "32", "--profile", "laptop"],
        "variants": {name: SELF_SUPERVISED[name] for name in SELF_SUPERVISED if "BYOL" not in name},
        "fidelity": "all 2,100 images, JPEG, shrunk from 256 to 96 px",
        "paper": None,
    },
    "photos_uc_merced": {
        "claim": "2,000 photographs of UC-Merced in one folder, deepclust cluster with its defaults",
        "folder": {"data": "uc-merced", "images": 2000},
        "variants": {"deepclust cluster": []},
        "fidelity": "2,000 of the 2,100 images, drawn by the seed; JPEG, shrunk from 256 to 96 px",
        "paper": None,
    },
    "photos_rsod": {
        "claim": "936 photographs of RSOD in one folder, deepclust cluster with its defaults",
        "folder": {"data": "rsod", "images": 2000},
        "variants": {"deepclust cluster": []},
        "fidelity": "936 of the 976 images, JPEG, shrunk to 96 px; 64 exact duplicates",
        "paper": None,
    },
    "how_many": {
        "claim": "How many clusters: digits and MNIST subsets of 3 to 10 classes, and images without groups, one seed each",
        "count": count_cases([3, 5, 7, 9, 10, 1, 0], [3, 4, 6, 8, 10, 1, 0], 300),
        "seeds": [0],
        "fidelity": "digits: all images of the classes drawn; MNIST: 300 images of each; 1,000 of one class and of noise",
        "paper": None,
    },
    "how_many_tuning": {
        "claim": "How many clusters: the cases on which the rules were set, one seed each",
        "count": count_cases([3, 8, 1, 0], [7, 10, 1, 0], 300),
        "seeds": [101],
        "fidelity": "digits: all images of the classes drawn; MNIST: 300 images of each; 1,000 of one class and of noise",
        "paper": None,
    },
    "classical_digits": {
        "claim": "The classical seven on the pixels of scikit-learn's digits",
        "images": {"source": "digits"},
        "variants": CLASSICAL,
        "fidelity": "the images themselves, 8x8",
        "paper": None,
    },
    "classical_rsod": {
        "claim": "The classical seven on the pixels of 936 images of RSOD at 32 px",
        "images": {"source": "rsod", "size": 32},
        "variants": CLASSICAL,
        "fidelity": "936 of the 976 images, JPEG, shrunk to 96 px; 64 exact duplicates",
        "paper": {
            "table": "1",
            "data": "RSOD, 976 images",
            "k-means": {"acc": 0.388, "nmi": 0.162, "ari": 0.075},
            "spectral": {"acc": 0.425, "nmi": 0.146, "ari": 0.096},
            "agglomerative": {"acc": 0.371, "nmi": 0.168, "ari": 0.071},
            "NMF": {"acc": 0.420, "nmi": 0.176, "ari": 0.052},
            "PCA + k-means": {"acc": 0.388, "nmi": 0.163, "ari": 0.075},
            "BIRCH": {"acc": 0.396, "nmi": 0.148, "ari": 0.068},
            "GMM": {"acc": 0.382, "nmi": 0.160, "ari": 0.069},
        },
    },
    "classical_uc_merced": {
        "claim": "The classical seven on the pixels of UC-Merced at 32 px",
        "images": {"source": "uc-merced", "size": 32},
        "variants": CLASSICAL,
        "fidelity": "all 2,100 images, JPEG, shrunk from 256 to 96 px",
        "paper": {
            "table": "1",
            "data": "UC-Merced, 2,100 images",
            "k-means": {"acc": 0.200, "nmi": 0.204, "ari": 0.065},
            "spectral": {"acc": 0.183, "nmi": 0.211, "ari": 0.038},
            "agglomerative": {"acc": 0.188, "nmi": 0.214, "ari": 0.058},
            "NMF": {"acc": 0.208, "nmi": 0.202, "ari": 0.089},
            "PCA + k-means": {"acc": 0.198, "nmi": 0.206, "ari": 0.064},
            "BIRCH": {"acc": 0.202, "nmi": 0.225, "ari": 0.066},
            "GMM": {"acc": 0.193, "nmi": 0.198, "ari": 0.062},
        },
    },
    "classical_mnist10k": {
        "claim": "The classical seven on the pixels of 10,000 images of MNIST",
        "images": {"source": "mnist", "limit": 10_000},
        "variants": CLASSICAL,
        "fidelity": "lossless; 10,000 of the 70,000 images of the merged set, drawn once",
        "paper": {
            "table": "I of MMDC",
            "data": "MNIST, 70,000 images",
            "k-means": {"acc": 0.572, "nmi": 0.499, "ari": None},
            "spectral": {"acc": 0.696, "nmi": 0.663, "ari": None},
        },
    },
}


def command(claim: dict, changes: list[str], seed: int, out: Path, root: str | None) -> list[str]:
    "The command line of one run; a change is a setting, or a method's name."
    changes = [change.format(seed=seed) for change in changes]
    methods = [change for change in changes if "=" not in change]
    flags = [change for change in changes if change.startswith("--")]
    values = [change for change in changes if "=" in change and change not in flags]
    settings = [part for change in values for part in ("--set", change)]
    where = ["--data-root", root] if root else []
    program = [
        sys.executable,
        "-m",
        "deepclust_nb.cli",
        "train",
        *methods,
        *claim["args"],
        *flags,
        *settings,
    ]
    return [*program, *where, "--seed", str(seed), "--out", str(out)]


def features_of(run: Path, root: str | None) -> dict[str, float]:
    "What k-means and a linear classifier make of the features of a run."
    where = ["--data-root", root] if root else []
    program = [sys.executable, "-m", "deepclust_nb.cli", "evaluate", str(run), "--probe", *where]
    found = json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)
    return {name: value for name, value in found.items() if name.startswith("features_")}


def commit() -> str:
    "The commit that is checked out, and whether anything but the results differs from it."
    call = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    found = call(["git", "describe", "--always"]).stdout.strip() or "unknown"
    changed = call(["git", "diff", "--quiet", "HEAD", "--", ".", ":!results"]).returncode
    return found + "-dirty" * bool(changed)


def clustered(claim: dict, variant: str, seed: int, root: str | None) -> dict:
    "One of the classical methods, in a process of its own, whose memory is measured."
    job = [sys.executable, "-c", CLUSTER, json.dumps(claim["images"] | {"root": root})]
    found = subprocess.run(
        [*job, variant, str(seed)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(found.stdout)


def scratch(claim: dict, variant: str, seed: int) -> Path:
    "Where a run is kept until its record is made."
    name = next(name for name, known in CLAIMS.items() if known is claim)
    return ROOT / "runs" / "evidence" / f"{name}-{list(claim['variants']).index(variant)}-{seed}"


def counted(claim: dict, variant: str, seed: int, root: str | None) -> dict:
    "One answer to how many, in a process of its own."
    job = [sys.executable, "-c", COUNT, json.dumps(claim["count"][variant]), str(seed), root or ""]
    return json.loads(subprocess.run(job, stdout=subprocess.PIPE, text=True, check=True).stdout)


def in_this_process(job: list[str]) -> None:
    "A command of deepclust without a start of Python, which can take as long as a short run."
    from deepclust_nb.cli import cli

    cli.main(job[3:], standalone_mode=False)


def trained(claim: dict, variant: str, seed: int, root: str | None) -> dict:
    "Train once; a run that was interrupted is taken up where it stood."
    out = scratch(claim, variant, seed)
    again = ["--resume"] if out.exists() else []
    job = command(claim, claim["variants"][variant], seed, out, root) + again
    if claim.get("short"):
        in_this_process(job)
    else:
        subprocess.run(job, check=True)
    record = json.loads((out / "summary.json").read_text())
    record |= {"peak_memory_mb": None} if claim.get("short") else {}  # that of all runs so far
    record["recipe"] = json.loads((out / "config.json").read_text())["recipe"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    if claim.get("probe"):
        record["features"] = features_of(out, root)
    record["curve"] = [[line["epoch"], line["acc"]] for line in lines if "acc" in line]
    record["last"] = {name: value for name, value in lines[-1].items() if "." in name}
    return record


def diagnosed(claim: dict, variant: str, seed: int, root: str | None) -> dict:
    "Train once, to its end or until it breaks, and write down what is said of its health."
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        job = command(claim, claim["variants"][variant], seed, out, root)
        done = subprocess.run(job, capture_output=True, text=True)
        config = json.loads((out / "config.json").read_text())
        log = out / "metrics.jsonl"  # missing when the first epoch broke
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        if (out / "summary.json").exists():
            health = json.loads((out / "summary.json").read_text())["health"]
            found, says = [one["name"] for one in health["found"]], health["says"]
        else:
            says = done.stderr.strip().splitlines()[-1:]
            found = [says[0].split(": ")[2]]  # deepclust: what is broken: its name: where it began
    asked = {name: config[name] for name in ("method", "k", "profile", "seed", "device", "threads")}
    asked |= {"data": config["data"]["title"], "n": config["data"]["n"]}
    looks = [{n: v for n, v in line.items() if n in LOOK} for line in lines if "chance" in line]
    outcome = {"expected": claim["expects"][variant], "found": found, "says": says, "looks": looks}
    acc = lines[-1].get("acc") if lines else None
    return asked | outcome | {"acc": acc, "versions": config["versions"]}


LOOK = ("epoch", "step", "mass_entropy", "clusters_used", "effective_rank", "isotropy")
LOOK += ("smallest_angle", "agreement", "chance", "churn", "light", "largest_weight", "train.loss")


def mixed(data: Path, n: int, seed: int, folder: Path) -> dict[str, str]:
    "Images of a set under numbers for names in one folder; the class of each."
    files = sorted(f for f in data.glob("*/*") if f.is_file())
    random.Random(seed).shuffle(files)
    folder.mkdir()
    classes = {}
    for i, file in enumerate(files[:n]):
        name = f"{i:04}{file.suffix}"
        shutil.copyfile(file, folder / name)
        classes[name] = file.parent.name
    return classes


def sorted_blindly(claim: dict, variant: str, seed: int, root: str | None) -> dict:
    "A folder without labels through `deepclust cluster`, timed; scored when it is over."
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch) / "photos", Path(scratch) / "run"
        about = claim["folder"]
        classes = mixed(Path(root or "data") / about["data"], about["images"], seed, folder)
        asked = ["--k", str(len(set(classes.values()))), "--seed", str(seed), "--out", str(out)]
        program = [sys.executable, "-m", "deepclust_nb.cli", "cluster", str(folder), *asked]
        begin, used = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(program, check=True)
        took, after = time.time() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        job = [sys.executable, "-c", SCORE, str(folder), str(out), json.dumps(classes)]
        scored = subprocess.run(job, stdout=subprocess.PIPE, text=True, check=True).stdout
        record = json.loads((out / "summary.json").read_text()) | json.loads(scored)
    record |= {"data": about["data"], "load": [round(v, 1) for v in os.getloadavg()]}
    return record | {"wall_seconds": round(took, 1), "cpu_seconds": round(cpu, 1)}


def one_run(claim: dict, variant: str, seed: int, root: str | None) -> dict:
    "The record of a run."
    kinds = {"folder": sorted_blindly, "images": clustered, "expects": diagnosed, "count": counted}
    make = next((make for kind, make in kinds.items() if kind in claim), trained)
    about = {"variant": variant, "commit": commit(), "cores": os.cpu_count()}
    return about | make(claim, variant, seed, root)


def read(name: str) -> dict:
    "What has been measured of a claim."
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else {"records": []}
    head = {key: CLAIMS[name][key] for key in ("claim", "fidelity", "paper")}
    protocol = PROTOCOL_PIXELS if "images" in CLAIMS[name] else PROTOCOL
    protocol = PROTOCOL_PHOTOS if "folder" in CLAIMS[name] else protocol
    protocol = PROTOCOL_HEALTH if "expects" in CLAIMS[name] else protocol
    protocol = PROTOCOL_COUNT if "count" in CLAIMS[name] else protocol
    return head | {"protocol": protocol, "records": known["records"]}


def write(name: str, result: dict) -> None:
    "Keep what has been measured, in the order of variants and seeds."
    order = list(variants(CLAIMS[name]))
    result["records"].sort(key=lambda r: (order.index(r["variant"]), r["seed"]))
    RESULTS.mkdir(exist_ok=True)
    part = RESULTS / f"{name}.json.part"
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(RESULTS / f"{name}.json")


def variants(claim: dict) -> dict:
    "The rows of a claim."
    return claim.get("variants") or claim["count"]


def measure(name: str, seeds: list[int], again: bool, root: str | None) -> None:
    "Make the runs of a claim that are missing, one after the other, saving each."
    for variant in variants(CLAIMS[name]):
        for seed in CLAIMS[name].get("seeds", seeds):
            result = read(name)
            found = [r for r in result["records"] if (r["variant"], r["seed"]) == (variant, seed)]
            if found and not again:
                continue
            result["records"] = [r for r in result["records"] if r not in found]
            print(f"== {name}: {variant}, seed {seed}", flush=True)
            result["records"].append(one_run(CLAIMS[name], variant, seed, root))
            write(name, result)
            shutil.rmtree(scratch(CLAIMS[name], variant, seed), ignore_errors=True)


def report(name: str) -> None:
    "Median and range of each variant."
    print(f"{name}: {CLAIMS[name]['claim']}")
    for variant in variants(CLAIMS[name]):
        runs = [r for r in read(name)["records"] if r["variant"] == variant]
        if "expects" in CLAIMS[name]:
            print(f"  {variant:<42} {[' + '.join(r['found']) or 'well' for r in runs]}")
            continue
        if "count" in CLAIMS[name]:
            print(f"  {variant:<20} {runs[0]['found']['verdict'] if runs else 'not run'}")
            continue
        values = [r["acc"] for r in runs]
        found = "not run"
        if values:
            found = (
                f"ACC {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f}), "
            )
            found += f"{len(values)} seeds, {max(r['seconds'] for r in runs):.0f} s at most"
        print(f"  {variant:<30} {found}")


def main() -> None:
    "Parse the command line and run."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help=", ".join(CLAIMS))
    parser.add_argument("--seeds", default="0,1,2", help="default 0,1,2")
    parser.add_argument("--data-root", help="folder that holds torchvision's files")
    parser.add_argument("--again", action="store_true", help="make runs again that are there")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    args = parser.parse_args()
    unknown = set(args.claims) - set(CLAIMS)
    if unknown:
        parser.error(f"unknown claim {', '.join(unknown)}; known: {', '.join(CLAIMS)}")
    for name in args.claims or CLAIMS:
        if not args.list:
            measure(name, [int(s) for s in args.seeds.split(",")], args.again, args.data_root)
        report(name)


if __name__ == "__main__":
    main()
