"""Seconds of a fit against rows, columns, K and depth, and what a fit costs beyond its epochs.

    python benchmarks/scaling.py [--quick] [--picture FILE] [--json FILE] [--no-bars]

A fit is Autoencoder(random_state=0), everything else its default but at most five epochs, on rows like W2's in
speed.py: a smooth map of eight numbers plus noise, float32. One thing varies at a time:

    rows      1,000 to 1,000,000 of 32 columns
    columns   8 to 4,096, 4,000 rows
    K         1 to 128, 20,000 rows of 256 columns
    depth     0 to 6 hidden layers of 64 between rows and code, 20,000 rows of 64 columns

The lesser of two fits counts (of one above 20 s). "overhead" is where the line of seconds against epochs, 1 to 32 of
them on 100 rows of 32 columns, begins: least squares through the least of five fits each, interleaved.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import bars
from peers.process import ROOT
from peers.workloads import bent

from retell import Autoencoder

ROWS = 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000
COLUMNS = 8, 32, 128, 512, 1024, 2048, 4096
WIDTHS = 1, 2, 4, 8, 16, 32, 64, 128
DEPTHS = 0, 1, 2, 3, 4, 6
EPOCHS = 1, 2, 4, 8, 16, 32


def seconds(X: np.ndarray, repeats: int = 2, **settings: Any) -> float:
    """The least of some fits."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        Autoencoder(**{"max_iter": 5, "random_state": 0, **settings}).fit(X)
        times.append(time.perf_counter() - start)
        if times[-1] > 20:
            break
    return min(times)


def curves(quick: bool) -> dict[str, dict[int, float]]:
    """Seconds by what varies; printed as they come."""
    wide, deep = bent(20_000, 0, 256)[0], bent(20_000, 0)[0]
    many = bent(max(ROWS), 0, 32)[0]

    def rows(n: int) -> float:
        return seconds(many[:n])

    def columns(n: int) -> float:
        return seconds(bent(4_000, 0, n)[0])

    def K(n: int) -> float:
        return seconds(wide, n_components=n)

    def depth(n: int) -> float:
        return seconds(deep, hidden_layer_sizes=(64,) * n)

    seconds(many[:1000])  # the first fit of a process loads what it needs
    found: dict[str, dict[int, float]] = {}
    varied: list[tuple[Callable[[int], float], tuple[int, ...]]] = [
        (rows, ROWS),
        (columns, COLUMNS),
        (K, WIDTHS),
        (depth, DEPTHS),
    ]
    for vary, values in varied:
        found[vary.__name__] = {n: vary(n) for n in values[: len(values) - 2 * quick]}
        print(f"{vary.__name__:8}", "  ".join(f"{n:,}: {t:.3g} s" for n, t in found[vary.__name__].items()), flush=True)
    return found


def overhead() -> tuple[float, float]:
    """Seconds of a fit of no epochs, and of an epoch, on 100 rows."""
    X = bent(100, 0, 32)[0]
    times = dict.fromkeys(EPOCHS, math.inf)
    for _ in range(5):
        for n in EPOCHS:
            times[n] = min(times[n], seconds(X, 1, max_iter=n, n_iter_no_change=1_000))
    slope, start = np.polyfit(list(times), list(times.values()), 1)
    return float(start), float(slope)


def draw(found: dict[str, dict[int, float]], path: Path) -> None:
    """One panel for each thing that varies; where the axes are logarithmic a dotted line is proportional."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
    titles = {
        "rows": "rows, 32 columns",
        "columns": "columns, 4,000 rows",
        "K": "K, 20,000 rows of 256 columns",
        "depth": "hidden layers of 64, 20,000 rows of 64 columns",
    }
    for panel, (name, points) in zip(axes.flat, found.items(), strict=True):
        x, y = np.array(list(points)), np.array(list(points.values()))
        panel.plot(x, y, "o-", color="tab:blue")
        panel.set(xlabel=titles[name])
        panel.grid(alpha=0.3)
        if name != "depth":
            panel.set_xscale("log")
        if name in ("rows", "columns"):
            panel.plot(x, y[-1] * x / x[-1], ":", color="grey", label="proportional")
            panel.set(yscale="log", ylim=(y.min() / 2, y.max() * 2))
            panel.legend(frameon=False, loc="upper left")
        else:
            panel.set_ylim(0)
    figure.supylabel("seconds of a fit, five epochs")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="leave out the two largest of everything")
    options.add_argument("--picture", type=Path, default=ROOT / "docs/scaling.png")
    options.add_argument("--json", type=Path, default=ROOT / ".bench/scaling.json")
    options.add_argument("--no-bars", action="store_true")
    options.add_argument("--data", help="not needed: make bench gives it to all")
    given = options.parse_args()
    found = curves(given.quick)
    start, epoch = overhead()
    print(f"overhead of a fit on 100 rows {1e3 * start:.1f} ms, an epoch {1e3 * epoch:.2f} ms")
    draw(found, given.picture)
    (_, less), (_, more) = list(found["rows"].items())[-3], list(found["rows"].items())[-1]
    wanted = [
        bars.Wanted("scaling: seconds for ten times the rows", more / less, 11, True),
        bars.Wanted("scaling: overhead of a fit on 100 rows, ms", 1e3 * start, 50, True),
    ]
    given.json.parent.mkdir(parents=True, exist_ok=True)
    figures = {"seconds": found, "overhead": start, "epoch": epoch}
    given.json.write_text(json.dumps({"figures": figures, "wanted": bars.record(wanted)}, indent=1) + "\n")
    return 0 if given.no_bars else bars.show(wanted)


if __name__ == "__main__":
    sys.exit(main())
