"""The data and the nets, alike for every process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

# widths from rows to code; the decoder is the mirror image
NETS = {"W1": (784, 256, 32), "W2": (64, 32, 8)}
TARGETS = {"W1": 0.015, "W2": 0.082}


@cache
def rows(workload: str, data: str) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows, float32. `data` is a folder with mnist10k.npz and anomaly/."""
    if workload == "W2":
        return bent(200_000, 20_000)
    file = np.load(Path(data) / "mnist10k.npz")
    X = (file["X"].reshape(len(file["X"]), -1) / np.float32(255)).astype(np.float32)
    return X[file["train"]], X[file["test"]]


def bent(n_train: int, n_test: int, columns: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """x = tanh(zA + c)B, every column to unit variance, plus noise of sd 0.15; then standardised. z ~ N(0, I_8)."""
    rng = np.random.default_rng(0)
    A, B, c = rng.normal(size=(8, 32)) / np.sqrt(8), rng.normal(size=(32, columns)) / np.sqrt(32), rng.normal(size=32)
    x = np.tanh(rng.normal(size=(n_train + n_test, 8)) @ A + c) @ B
    x = x / x.std(0) + 0.15 * rng.normal(size=x.shape)
    x = ((x - x[:n_train].mean(0)) / x[:n_train].std(0)).astype(np.float32)
    return x[:n_train].copy(), x[n_train:].copy()


def anomaly(data: str) -> dict[str, np.ndarray]:
    """Of each table the rows that never_worse.py fits: 70 % of up to 6,000 rows of both kinds, as they are."""
    tables = {}
    for file in sorted((Path(data) / "anomaly").glob("*.npz")):
        X = np.load(file)["X"].astype(float)
        order = np.random.default_rng(0).permutation(len(X))[:6000]
        tables[file.stem] = X[order[: round(0.7 * len(order))]]
    return tables
