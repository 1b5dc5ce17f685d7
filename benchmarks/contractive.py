"""mnist10k, contractive fits of growing coefficient: what their codes feel of a small change of the image.

    python benchmarks/contractive.py --data DIR [--seed S]

One net throughout, an affine map and ReLU with an affine decoder, K = 128, fitted to the 8,000 training images; all
figures are of the 2,000 test images. A code can be made to move less by being small, so each is also divided by its
standard deviation. (With a penalty the decoder's columns have unit norm, so that smallness does not pay.)

    error     squared error an image
    penalty   ||dh/dx||_F^2 as the penalty sees it, in the scaled space
    unit sd   the same, of each unit divided by its standard deviation
    moved     under Gaussian noise of a quarter of each pixel's standard deviation: squared change of a unit over its
              variance, mean over the units that are not constant
    grey      the same under noise of 0.1 grey levels on every pixel, also on those that hardly ever vary

Every contractive fit is compared with a plain one of equal error (to 2 %), which has fewer units: a plain code of
128 reconstructs better and moves more, since its last units hold what varies least. "moved" is the fair column:
a plain fit has no reason to keep its weights small on the 165 pixels near the edge that are almost constant (their
standard deviation is below 0.05), and nearly all of "grey" and of its Jacobian comes from there.

Fails if "penalty" or "unit sd" does not fall with every step of the coefficient, or if a contractive code moves as
much as its plain partner, under either noise.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from retell import MSE, Autoencoder, Contractive

K = 128
COEFFICIENTS = 1e-4, 1e-3, 1e-2, 3e-2
EQUAL = 0.02


class Figures(NamedTuple):
    """One fit on the test images."""

    error: float
    penalty: float
    unit_sd: float
    moved: float
    grey: float


def measure(model: Autoencoder, train: np.ndarray, test: np.ndarray) -> Figures:
    h = model.transform(test)
    spread = h.std(0)
    alive = spread > 0
    p = model.codec_(torch.from_numpy(model.scaling_.to(test)).to(model.codec_.centre))
    unit = torch.from_numpy(np.where(alive, spread, np.inf)).to(p.h)  # a unit that never changes has no slope
    norms = [float(Contractive()(p._replace(unit=one)).mean().detach()) for one in (1.0, unit)]
    noise = np.random.default_rng(0).normal(size=test.shape)
    changes = [model.transform(test + size * noise) - h for size in (train.std(0) / 4, 0.1)]
    moved = [float(np.mean((change[:, alive] / spread[alive]) ** 2)) for change in changes]
    return Figures(float(((test - model.reconstruct(test)) ** 2).sum(1).mean()), *norms, *moved)


def matched(plain: Callable[[int], Figures], error: float) -> int:
    """The width whose plain fit comes nearest to the error: interpolated in logarithms, from two widths inwards."""
    low, high = 8, K
    while high - low > 1:
        for width in low, high:
            if abs(plain(width).error / error - 1) <= EQUAL:
                return width
        slope = math.log(plain(high).error / plain(low).error) / math.log(high / low)
        width = round(low * (error / plain(low).error) ** (1 / slope))
        width = min(max(width, low + 1), high - 1)
        low, high = (width, high) if plain(width).error > error else (low, width)
    return min((low, high), key=lambda width: abs(plain(width).error / error - 1))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    file = np.load(given.data / "mnist10k.npz")
    X = file["X"].reshape(10000, -1) / 255.0
    train, test = X[file["train"]], X[file["test"]]
    known: dict[int, Figures] = {}
    start = time.perf_counter()

    def fit(width: int, coefficient: float) -> Figures:
        objective = MSE() + coefficient * Contractive() if coefficient else MSE()
        net = Autoencoder(width, hidden_layer_sizes=(), code_activation="ReLU()", random_state=given.seed)
        return measure(net.set_params(objective=objective).fit(train), train, test)

    def plain(width: int) -> Figures:
        if width not in known:
            known[width] = fit(width, 0.0)
        return known[width]

    def show(name: str, units: int, f: Figures) -> None:
        print(
            f"{name:12}{units:6}{f.error:9.3f}{f.penalty:11.3f}{f.unit_sd:11.3f}{f.moved:9.4f}{f.grey:9.4f}",
            flush=True,
        )

    print(f"{'coefficient':12}{'units':>6}{'error':>9}{'penalty':>11}{'unit sd':>11}{'moved':>9}{'grey':>9}")
    rows = [plain(K)]
    show("0", K, rows[0])
    faults = []
    for coefficient in COEFFICIENTS:
        mine = fit(K, coefficient)
        width = matched(plain, mine.error)
        other = plain(width)
        show(f"{coefficient:g}", K, mine)
        show("  plain", width, other)
        if not (mine.penalty < rows[-1].penalty and mine.unit_sd < rows[-1].unit_sd):
            faults.append(f"the Jacobian did not fall at {coefficient:g}")
        if abs(other.error / mine.error - 1) > EQUAL:
            faults.append(f"no plain fit has the error of {coefficient:g}")
        if not (mine.moved < other.moved and mine.grey < other.grey):
            faults.append(f"the plain code moves less at {coefficient:g}")
        rows.append(mine)
    print(
        f"\n{len(known) + len(COEFFICIENTS)} fits, {time.perf_counter() - start:.0f} s; "
        + ("; ".join(faults) or "all as wanted")
    )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
