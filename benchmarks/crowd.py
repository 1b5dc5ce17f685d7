"""Seconds an epoch beside other processes that want the cores.

    python benchmarks/crowd.py [--repeats N] [--json FILE]

A fit of 20,000 float32 rows of 300 columns, K = 30, everything else its default but six epochs, on as many threads as
the machine has cores and on one; beside no other process, one that never rests, and as many as there are cores. The
median of the epochs after the first; interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers.workloads import bent

from retell import Autoencoder


@contextmanager
def busy(n: int):
    """So many processes that never rest."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def epochs(X: np.ndarray, threads: int) -> list[float]:
    """Seconds of each but the first."""
    torch.set_num_threads(threads)
    taken, before = [], time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="other processes want the cores")
        for _ in Autoencoder(30, max_iter=6, n_iter_no_change=6, random_state=0).fit_epochs(X):
            taken.append(time.perf_counter() - before)
            before = time.perf_counter()
    return taken[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--data", help="not needed")
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    X = bent(20_000, 0, 300)[0]
    cells = {(n, threads): [] for n in (0, 1, cores) for threads in (cores, 1)}
    for _ in range(given.repeats):
        for (n, threads), taken in cells.items():
            with busy(n):
                taken += epochs(X, threads)
    medians = {cell: statistics.median(taken) for cell, taken in cells.items()}
    print(f"{cores} cores; seconds an epoch, and as a multiple of the least\n{'others':>6}  {'threads':>7}")
    for (n, threads), median in medians.items():
        print(f"{n:>6}  {threads:>7}  {median:6.2f}  {median / min(medians.values()):4.1f}x")
    if given.json:
        found = [{"others": n, "threads": threads, "seconds": it} for (n, threads), it in medians.items()]
        given.json.write_text(json.dumps({"cores": cores, "cells": found}, indent=1))


if __name__ == "__main__":
    main()
