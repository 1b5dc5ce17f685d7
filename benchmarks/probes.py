"""Test error of logistic regression on codes of mnist10k (8000/2000), K = 256, and on PCA's and the raw pixels.

    python benchmarks/probes.py --data DIR [--seed S]

All codes are of one net, an affine map, ReLU and an affine decoder, trained alike but for what regularises it. Every
setting, and the C of the logistic regression, is the one with the least error on 1,500 of the training rows, encoder
and regression fitted to the other 6,500; with it both are fitted to all 8,000 and judged on the test rows. Before the
regression features are centred and divided by one number, the root mean square of their standard deviations.

    active    features that are not zero, mean over the test rows
    chosen    error on the 1,500 rows, per cent; it is the least of several, so it flatters

Fails if no regularised code has a lower test error than the plain one, PCA and the raw pixels.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from retell import Autoencoder

K = 256
NET = {"hidden_layer_sizes": (), "code_activation": "ReLU()", "batch_size": 128, "max_iter": 30}
STRENGTHS = 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0
CODES: dict[str, list[dict[str, str]]] = {
    "plain": [{}],
    "sparse": [{"objective": f"MSE() + {c} * L1()"} for c in (0.001, 0.01)]
    + [{"code_activation": f"TopK({k})"} for k in (15, 30, 60)],
    "denoising": [{"corruption": f"Mask({p})"} for p in (0.5, 0.7, 0.85)],
    "contractive": [{"objective": f"MSE() + {c} * Contractive()"} for c in (0.0001, 0.001, 0.01)],
}
Encoder = Callable[[np.ndarray], np.ndarray]


def probe(h: np.ndarray, y: np.ndarray, judged: np.ndarray, truth: np.ndarray, C: float) -> float:
    """Error in per cent of a regression on the features h, y on the rows `judged`."""
    mean, size = h.mean(0), np.sqrt(h.var(0).mean())
    regression = LogisticRegression(C=C, tol=1e-3, max_iter=1000).fit((h - mean) / size, y)
    return 100 * float(np.mean(regression.predict((judged - mean) / size) != truth))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    file = np.load(given.data / "mnist10k.npz")
    X, y = file["X"].reshape(10000, -1) / 255.0, file["y"]
    train, test = np.random.default_rng(0).permutation(file["train"]), file["test"]
    fitted, chosen_on = train[:6500], train[6500:]

    def encoder(name: str, setting: dict[str, Any], rows: np.ndarray) -> Encoder:
        if name == "raw pixels":
            return np.asarray
        if name == "PCA":
            return PCA(K, svd_solver="full").fit(X[rows]).transform
        return Autoencoder(K, random_state=given.seed, **{**NET, **setting}).fit(X[rows]).transform

    print(f"{'features':12}{'number':>7}{'active':>8}{'C':>7}{'chosen':>8}{'test':>7}{'s':>7}  setting")
    errors = {}
    for name in ("raw pixels", "PCA", *CODES):
        start = time.perf_counter()
        tried = []
        for setting in CODES.get(name, [{}]):
            encode = encoder(name, setting, fitted)
            h, judged = encode(X[fitted]), encode(X[chosen_on])
            for C in STRENGTHS:
                tried.append((probe(h, y[fitted], judged, y[chosen_on], C), C, setting))
        least, C, setting = min(tried, key=lambda one: one[0])
        encode = encoder(name, setting, train)
        h, judged = encode(X[train]), encode(X[test])
        errors[name] = probe(h, y[train], judged, y[test], C)
        active = np.count_nonzero(judged, axis=1).mean()
        seconds = time.perf_counter() - start
        print(
            f"{name:12}{h.shape[1]:7}{active:8.1f}{C:7g}{least:8.2f}{errors[name]:7.2f}{seconds:7.1f}"
            f"  {' '.join(setting.values())}",
            flush=True,
        )
    best = min(("sparse", "denoising", "contractive"), key=errors.__getitem__)
    bar = min(errors[name] for name in ("raw pixels", "PCA", "plain"))
    print(f"\nbest regularised code: {best}, {errors[best]:.2f} %; best without: {bar:.2f} %")
    return int(errors[best] >= bar)


if __name__ == "__main__":
    sys.exit(main())
