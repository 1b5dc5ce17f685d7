"""Held-out mnist10k images with half of their cells hidden: what a fit that saw such images restores, and a plain one.

    python benchmarks/denoising.py --data DIR [--seeds N]

One default net for each K, fitted to the 8,000 training images, plain and with Mask(0.5). The 2,000 test images are
hidden in the same cells for all. Squared error an image to the clean one, over all its cells and over the hidden
ones, in grey levels from 0 to 1. Fails if the denoising fit leaves more than 0.6 of the plain one's, on either.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from retell import Autoencoder, Mask

WIDTHS = 32, 64, 256
BAR = 0.6


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--seeds", type=int, default=1)
    given = options.parse_args()
    file = np.load(given.data / "mnist10k.npz")
    X = file["X"].reshape(10000, -1) / 255.0
    train, test = X[file["train"]], X[file["test"]]
    holed, hit, _ = (np.asarray(part) for part in Mask(0.5)(torch.from_numpy(test), torch.Generator().manual_seed(0)))
    nothing = (test - train.mean(0)) ** 2
    print(f"{'K':>4}{'seed':>5}  {'corruption':12}{'all cells':>10}{'hidden':>8}{'epochs':>8}{'s':>7}")
    print(f"{'':11}{'mean image':12}{nothing.sum() / len(test):10.3f}{nothing[hit].sum() / len(test):8.3f}")
    worst = 0.0
    for K in WIDTHS:
        for seed in range(given.seeds):
            errors = []
            for corruption in "Nothing()", "Mask(0.5)":
                start = time.perf_counter()
                model = Autoencoder(K, corruption=corruption, random_state=seed).fit(train)
                seconds = time.perf_counter() - start
                off = (test - model.reconstruct(holed)) ** 2
                errors.append(np.array([off.sum(), off[hit].sum()]) / len(test))
                cells = "".join(f"{error:{width}.3f}" for error, width in zip(errors[-1], (10, 8), strict=True))
                print(f"{K:4}{seed:5}  {corruption:12}{cells}{model.n_iter_:8}{seconds:7.1f}", flush=True)
            ratios = errors[1] / errors[0]
            print(f"{K:4}{seed:5}  {'ratio':12}{ratios[0]:10.3f}{ratios[1]:8.3f}", flush=True)
            worst = max(worst, *ratios)
    print(f"\nlargest ratio {worst:.3f}, at most {BAR} wanted")
    return int(worst > BAR)


if __name__ == "__main__":
    sys.exit(main())
