"""Held-out squared error of a default Autoencoder over that of PCA with as many components.

    python benchmarks/never_worse.py [--data DIR] [--seeds N] [--only NAME ...]

Tables: digits, wine and breast cancer, and with --data the anomaly tables and mnist10k of that folder.
Each is split 70/30 (mnist10k as it comes) from up to 6,000 rows of both kinds and standardised on its
training part; K is 2, a quarter and a half of the columns. PCA is fitted to all training rows. Cells where
PCA leaves less than 1e-6 of the variance are listed but not counted.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA

from retell import Autoencoder

ROWS = 6000


def tables(data: Path | None) -> Iterator[tuple[str, np.ndarray, tuple[np.ndarray, np.ndarray] | None]]:
    """Name, rows, and the rows' own split if they have one."""
    for name, load in (("digits", load_digits), ("wine", load_wine), ("breast_cancer", load_breast_cancer)):
        yield name, load().data, None
    if data is None:
        return
    for file in sorted((data / "anomaly").glob("*.npz")):
        yield file.stem, np.load(file)["X"].astype(float), None
    mnist = np.load(data / "mnist10k.npz")
    yield "mnist10k", mnist["X"].reshape(10000, -1) / 255.0, (mnist["train"], mnist["test"])


def split(X: np.ndarray, given: tuple[np.ndarray, np.ndarray] | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows, standardised on the training part (mnist10k is left in [0, 1])."""
    if given is not None:
        return X[given[0]], X[given[1]]
    order = np.random.default_rng(seed).permutation(len(X))[:ROWS]
    cut = round(0.7 * len(order))
    train, test = X[order[:cut]], X[order[cut:]]
    mean, spread = train.mean(0), train.std(0)
    spread[spread <= 1e-12 * np.abs(mean)] = 1.0
    return (train - mean) / spread, (test - mean) / spread


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--only", nargs="*")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    print(f"{'table':16}{'rows':>6}{'cols':>6}{'K':>5}{'seed':>5}{'PCA':>12}{'retell':>12}{'ratio':>8}{'s':>7}")
    for name, X, own in tables(given.data):
        if given.only and name not in given.only:
            continue
        for seed in range(given.seeds):
            train, test = split(X, own, seed)
            for K in sorted({2, max(1, X.shape[1] // 4), max(1, X.shape[1] // 2)}):
                pca = PCA(K, svd_solver="full").fit(train)
                linear = float(((test - pca.inverse_transform(pca.transform(test))) ** 2).sum(1).mean())
                start = time.perf_counter()
                model = Autoencoder(K, random_state=seed).fit(train)
                seconds = time.perf_counter() - start
                error = float(((test - model.reconstruct(test)) ** 2).sum(1).mean())
                counted = linear > 1e-6 * float(((test - train.mean(0)) ** 2).sum(1).mean())
                ratio = error / linear if linear else 1.0
                rows.append((name, len(train), ratio, counted, seconds))
                mark = "" if counted else "  not counted"
                print(
                    f"{name:16}{len(train):6}{X.shape[1]:6}{K:5}{seed:5}{linear:12.5g}{error:12.5g}"
                    f"{ratio:8.3f}{seconds:7.1f}{mark}",
                    flush=True,
                )
    counted = [(name, n, ratio) for name, n, ratio, counts, _ in rows if counts]
    ratios = np.array([ratio for *_, ratio in counted])
    over = [(name, round(ratio, 4)) for name, n, ratio in counted if ratio > (1.01 if n >= 210 else 1.03)]
    print(f"\n{len(ratios)} fits, {sum(row[-1] for row in rows):.0f} s, longest {max(row[-1] for row in rows):.1f} s")
    # where nothing was accepted the model is PCA, and the ratio is 1 to rounding
    share = np.mean(np.round(ratios, 4) <= 1)
    print(f"median ratio {np.median(ratios):.3f}, largest {ratios.max():.4f}, <= 1.0000 in {share:.1%}")
    print("above 1.01 (1.03 under 300 rows): " + (", ".join(f"{n} {r}" for n, r in over) or "none"))
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
