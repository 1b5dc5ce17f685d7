"""How much of a known world a dictionary has found, by the definitions of SynthSAEBench (arXiv 2602.14687)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from .synthetic import Codes

WORDS = "f1", "mcc", "unique", "explained", "l0", "dead", "shrinkage"


@torch.no_grad()
def score(fit: Any, x: torch.Tensor, codes: Codes, vectors: np.ndarray, block: int = 1024) -> dict[str, float]:
    """Of rows x (n, D) with known codes, and of the true vectors (N, D).

    f1: mean over units of F1 as a detector of the vector nearest by |cosine|; mcc: mean |cosine| of units and vectors
    matched one to one; unique: share of units' nearest vectors that are different ones; explained: R²; l0: active units
    a row; dead: share of units silent on all rows; shrinkage: mean of |x̂| / |x|.
    """
    cosines = np.abs(unit(fit.dictionary().detach().double().numpy()) @ unit(vectors.astype(float)).T)
    nearest = torch.from_numpy(cosines.argmax(1))
    both = fired = there = torch.zeros(len(nearest), dtype=torch.float64)
    error = active = size = 0.0
    for i in range(0, len(x), block):
        some = x[i : i + block]
        h = fit.encode(some)
        x_hat, fires, fact = fit.decode(h), h > 0, _facts(codes, i, len(some), len(vectors))[:, nearest]
        both, fired, there = both + (fires & fact).sum(0), fired + fires.sum(0), there + fact.sum(0)
        error += float((some - x_hat).double().square().sum())
        size += float((x_hat.norm(dim=1) / some.norm(dim=1)).double().sum())
        active += float(fires.sum())
    total = float((x - x.mean(0)).double().square().sum())
    return {
        "f1": float((2 * both / (fired + there).clamp(min=1)).mean()),
        "mcc": float(cosines[linear_sum_assignment(-cosines)].mean()),
        "unique": len(nearest.unique()) / len(nearest),
        "explained": 1 - error / total,
        "l0": active / len(x),
        "dead": float((fired == 0).double().mean()),
        "shrinkage": size / len(x),
    }


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    found: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return found


def _facts(codes: Codes, start: int, n: int, features: int) -> torch.Tensor:
    """Which features fire in n rows from `start` on."""
    some = slice(*np.searchsorted(codes.row, (start, start + n)))
    found = torch.zeros(n, features, dtype=torch.bool)
    found[torch.from_numpy(codes.row[some] - start), torch.from_numpy(codes.feature[some])] = True
    return found
