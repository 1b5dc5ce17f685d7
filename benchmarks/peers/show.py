"""Figures as text."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .measures import Crew, Figures, median, ratio


def table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as they must be: names to the left, numbers to the right, a reason across."""
    cells = [[text(cell) for cell in line] for line in lines]
    wide = [max(len(line[i]) for line in [list(head), *cells] if len(line) == len(head)) for i in range(len(head))]
    wide[0] = max(len(line[0]) for line in [list(head), *cells])
    for line in [list(head), *cells]:
        first, *rest = line
        if len(line) == len(head):
            print(first.ljust(wide[0]), *(cell.rjust(w) for cell, w in zip(rest, wide[1:], strict=True)), sep="  ")
        else:
            print(first.ljust(wide[0]), *rest, sep="  ")
    print(flush=True)


def text(cell: Any) -> str:
    """Four digits; a dash where there is nothing."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def both(seconds: list[float]) -> str:
    """Median (minimum)."""
    return f"{median(seconds):.4g} ({min(seconds):.4g})"


def header(crew: Crew, rounds: int) -> Figures:
    """The machine and the versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
        flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
        cpu += "".join(f" {flag}" for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags)
    print(f"machine   {cpu}, {os.cpu_count()} cores, {platform.system()} {platform.release()}")
    versions: dict[str, str] = {"python": platform.python_version()}
    starts, notes = {}, {}
    for peer in crew.peers:
        process = crew[peer]
        if process.cannot:
            notes[peer] = process.cannot
            continue
        versions |= process.hello["versions"]
        starts[peer] = process.start_seconds
        notes |= {peer: process.hello["note"]} if process.hello["note"] else {}
    versions.setdefault("retell", version("retell"))
    print("versions ", ", ".join(f"{name} {number}" for name, number in versions.items()))
    print(f"rounds    {rounds}, interleaved: each peer once, then each again; 2 threads, one process at work at a time")
    print("start     seconds to start and import:", ", ".join(f"{name} {t:.1f}" for name, t in starts.items()))
    for peer, note in notes.items():
        print(f"note      {peer}: {note}")
    print()
    return {"cpu": cpu, "cores": os.cpu_count(), "versions": versions, "start_seconds": starts, "notes": notes}


def epochs(cell: str, figures: Figures) -> None:
    print(f"{cell}: seconds an epoch")
    limit, plain = (figures.get(name, {}).get("epochs", []) for name in ("products", "plain"))
    peers = [f for name, f in figures.items() if f.get("epochs") and not name.startswith(("retell", "products"))]
    best = min((f["epochs"] for f in peers), key=median, default=[])
    lines: list[Sequence[Any]] = []
    for name, f in sorted(figures.items(), key=lambda item: median(item[1]["epochs"]) if item[1]["epochs"] else 1e9):
        if not f["epochs"]:
            lines.append((name, f["cannot"]))
            continue
        mine = f["epochs"]
        ratios = ratio(mine, limit), ratio(mine, plain), ratio(mine, best)
        tail = median(f["overheads"]), f["first_fit"], f["test_mse"], *(f["one_thread"][-1:] or [None])
        lines.append((name, both(mine), *ratios, *tail))
    table(
        ("", "median (min)", "x products", "x plain", "x best peer", "a fit", "first fit", "test MSE", "1 thread"),
        lines,
    )


def peaks(figures: Figures) -> None:
    print("Peak of memory above the rows, MB: W2, two epochs, in a fresh process (libraries loaded by a fit count)")
    lines = [(name, f["cannot"]) if f["cannot"] else (name, *f["peaks"]) for name, f in figures.items()]
    table(("", "first fit", "second fit"), lines)


def until(workload: str, target: float, figures: Figures) -> None:
    print(f"{workload}: seconds until test MSE <= {target} (start of the process and import apart)")
    lines: list[Sequence[Any]] = []
    for name, f in sorted(figures.items(), key=lambda item: median(item[1]["seconds"]) if item[1]["seconds"] else 1e9):
        if not f["seconds"]:
            lines.append((name, f["cannot"]))
            continue
        setting = (
            f["setting"] if isinstance(f["setting"], str) else " ".join(f"{k} {v}" for k, v in f["setting"].items())
        )
        times = ratio(f["seconds"], figures.get("retell", {}).get("seconds", []))
        lines.append((name, both(f["seconds"]), times, f["epochs"], setting))
    table(("", "median (min)", "x retell", "epochs", "setting"), lines)


def tables(figures: Figures) -> None:
    print("A fit with nothing set, seconds")
    peers = list(next(iter(figures.values())))
    lines = [(name, *(f[peer].get("seconds") for peer in peers)) for name, f in figures.items()]
    sums = [sum(f[peer].get("seconds", math.nan) for f in figures.values()) for peer in peers]
    table(("", *peers), [*lines, ("in all", *sums)])


def linear(figures: Figures) -> None:
    print("W3, linear 784 -> 32: seconds, and squared error over the best of them")
    least = min((f["train_mse"] for f in figures.values() if f["seconds"]), default=math.nan)
    lines = [
        (name, both(f["seconds"]), f["train_mse"] / least, f["test_mse"], f["peak_mb"])
        if f["seconds"]
        else (name, f["cannot"])
        for name, f in figures.items()
    ]
    table(("", "median (min)", "train / least", "test MSE", "peak MB"), lines)


def encode(workload: str, figures: Figures) -> None:
    what = "1,000,000 rows of 64 columns" if workload == "W2" else "100 times the 10,000 rows of mnist10k"
    print(f"W5, codes of {what} by {workload}'s encoder")
    limit = figures.get("products", {}).get("seconds", [])
    lines = [
        (name, both(f["seconds"]), ratio(f["seconds"], limit), f["way"], f["peak_mb"], f.get("microseconds"))
        if f["seconds"]
        else (name, f["cannot"])
        for name, f in figures.items()
    ]
    table(("", "median (min)", "x products", "way", "peak MB", "one row, us"), lines)
