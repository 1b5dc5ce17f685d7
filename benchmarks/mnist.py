"""Test squared error an image on mnist10k (8000/2000), K = 30, hidden layers (512, 256), all else default.

    python benchmarks/mnist.py --data DIR [--seeds N]

PCA with 30 components leaves 13.91 an image.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA

from retell import Autoencoder


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--seeds", type=int, default=3)
    given = options.parse_args()
    file = np.load(given.data / "mnist10k.npz")
    X = file["X"].reshape(10000, -1) / 255.0
    train, test = X[file["train"]], X[file["test"]]
    pca = PCA(30).fit(train)
    linear = ((test - pca.inverse_transform(pca.transform(test))) ** 2).sum(1).mean()
    print(f"PCA-30 {linear:.3f}")
    errors = []
    for seed in range(given.seeds):
        start = time.perf_counter()
        model = Autoencoder(30, hidden_layer_sizes=(512, 256), random_state=seed).fit(train)
        seconds = time.perf_counter() - start
        errors.append(float(((test - model.reconstruct(test)) ** 2).sum(1).mean()))
        print(f"seed {seed}: {errors[-1]:.3f}, {model.n_iter_} epochs, {seconds:.1f} s", flush=True)
    print(f"median {np.median(errors):.3f}, {np.median(errors) / linear:.3f} of PCA's")


if __name__ == "__main__":
    main()
