"""How long the E-step's k-means takes beside scikit-learn's, and how good both are: one run, two kinds of data.

    python tools/estep.py [--images 60000] [--dim 256] [--k 10] [--restarts 10] [--threads 2] [--rounds 3]

Rows of length 1, as the E-step of BYOL, NCC and DigPro has them: once in clear clusters, once hardly clustered. Both sides
get the same number of restarts, tolerance and limit of iterations; ours lets all restarts see a sample of 8,192 rows and takes
the three best to the rest. Inertia is that of Euclidean k-means for both partitions, with
means as centres, so scikit-learn is judged by its own measure and ours by another than its own.
"""

import argparse
import json
import time

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from deepclust_nb.cluster import spherical_kmeans
from deepclust_nb.core import generator, unit

SPREAD = {
    "clustered": 1.0,
    "hardly clustered": 4.0,
}  # length of the noise beside a centre of length 1


def rows(n: int, dim: int, k: int, spread: float, seed: int) -> torch.Tensor:
    "Unit rows (N,D) around k random directions."
    stream = generator(seed, "rows")
    centres = unit(torch.randn(k, dim, generator=stream))
    which = torch.randint(k, (n,), generator=stream)
    noise = torch.randn(n, dim, generator=stream) * spread / dim**0.5
    return unit(centres[which] + noise)


def inertia(x: torch.Tensor, assign: torch.Tensor, k: int) -> float:
    "Sum of squared distances to the means of the clusters, in float64."
    x = x.double()
    sums = torch.zeros(k, x.shape[1], dtype=torch.float64).index_add_(0, assign, x)
    counts = assign.bincount(minlength=k).clamp(min=1)
    return float(x.square().sum() - (sums.square().sum(1) / counts).sum())


def ours(x: torch.Tensor, seed: int, args: argparse.Namespace) -> torch.Tensor:
    "Clusters (N,) of our E-step."
    options = {"restarts": args.restarts, "iters": args.iters, "tol": args.tol}
    return spherical_kmeans(x, args.k, seed=seed, **options).assign


def theirs(x: torch.Tensor, seed: int, args: argparse.Namespace) -> torch.Tensor:
    "Clusters (N,) of scikit-learn's k-means."
    options = {"n_init": args.restarts, "max_iter": args.iters, "tol": args.tol}
    found = KMeans(args.k, random_state=seed, **options).fit(x.numpy())
    return torch.from_numpy(found.labels_).long()


def compare(x: torch.Tensor, args: argparse.Namespace) -> dict[str, float]:
    "Both sides in turns; medians of the times, the worst of our inertias against the best of theirs."
    sides = {"ours": ours, "theirs": theirs}
    times, inertias = {side: [] for side in sides}, {side: [] for side in sides}
    for seed in range(args.rounds):
        for side, cluster in sides.items():
            begin = time.perf_counter()
            assign = cluster(x, seed, args)
            times[side].append(time.perf_counter() - begin)
            inertias[side].append(inertia(x, assign, args.k))
    seconds = {side: float(np.median(values)) for side, values in times.items()}
    return {
        "ours_s": round(seconds["ours"], 2),
        "scikit_learn_s": round(seconds["theirs"], 2),
        "times_as_fast": round(seconds["theirs"] / seconds["ours"], 2),
        "inertia_ratio": round(max(inertias["ours"]) / min(inertias["theirs"]), 5),
    }


def main() -> None:
    "Parse the command line, measure, print JSON."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--iters", type=int, default=300)
    parser.add_argument("--tol", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        for name, spread in SPREAD.items():
            x = rows(args.images, args.dim, args.k, spread, seed=0)
            print(json.dumps({"data": name} | compare(x, args)), flush=True)


if __name__ == "__main__":
    main()
