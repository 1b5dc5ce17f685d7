"""Figures of sparse dictionaries as text."""

from __future__ import annotations

import math

from ..measures import Figures, median, ratio
from ..show import both, table
from .frontier import LEVELS


def steps(cell: str, figures: Figures) -> None:
    print(f"{cell}: seconds a step")
    limit, mine = (figures.get(name, {}).get("steps", []) for name in ("products", "retell"))
    lines = [
        (name, both(f["steps"]), ratio(f["steps"], limit), ratio(f["steps"], mine), f["precision"])
        if f["steps"]
        else (name, f["cannot"])
        for name, f in sorted(figures.items(), key=lambda item: median(item[1]["steps"]) if item[1]["steps"] else 1e9)
    ]
    table(("", "median (min)", "x product", "x retell", "precision"), lines)


def peaks(cell: str, figures: Figures) -> None:
    print(f"{cell}: MB at the peak of a step above a process that holds the rows; of it what any step must hold:")
    print("weights, gradients, two moments, a batch")
    lines = [
        (name, f["peak_mb"], f["own_mb"], f["peak_mb"] - f["own_mb"]) if "peak_mb" in f else (name, f["cannot"])
        for name, f in figures.items()
    ]
    table(("", "peak", "must", "beyond"), lines)


def levels(figures: Figures) -> None:
    print("FVU of the test rows at L0 after equal rows: mean over seeds (how many), rate of least FVU, dead units")
    lines = []
    for name, row in figures.items():
        lines.append((name, *(_cell(row.get(str(level))) for level in LEVELS)))
    table(("", *(f"L0 {level}" for level in LEVELS)), lines)


def _cell(one: Figures | None) -> str:
    if one is None:
        return "-"
    rate = "" if one["rate"] is None else f" at {one['rate']:g}"
    return f"{one['fvu']:.4f} ({len(one['each'])}){rate}, dead {one['dead']:.1%}"


def in_time(figures: Figures) -> None:
    print("FVU of the test rows at L0 when retell has taken all its epochs: the peers' share of theirs by then")
    lines = [(name, one["epochs"], *one["fvu"].values()) for name, one in figures.items()]
    table(("", "epochs", *(f"L0 {level}" for level in LEVELS)), lines)


def dials(figures: Figures) -> None:
    print("Asked for and reached on the test rows")
    lines = [
        (name, " ".join(f"{x:.4g}" for x in one["reached"]), f"{one['off']:.1%}")
        if one["reached"]
        else (name, one["cannot"])
        for name, one in figures.items()
    ]
    table(("", "reached", "off at most"), lines)


def stability(figures: Figures) -> None:
    print("Cosine of matched decoder rows between seeds")
    lines = [
        (name, one["seeds"], one["mean"], " ".join(f"{q:.3f}" for q in one["quartiles"]), f"{one['above_0.9']:.1%}")
        for name, one in figures.items()
        if not math.isnan(one["mean"])
    ]
    table(("", "seeds", "mean", "quartiles", "above 0.9"), lines)
