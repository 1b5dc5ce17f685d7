"""What is wanted of retell's sparse dictionaries."""

from __future__ import annotations

import math

from ..bars import Wanted
from ..measures import Figures, ratio
from .frontier import CODES, LEVELS

STEPS = {  # steps over products; and peers over retell
    "TopK(32), K = 3072": (1.2, {"saelens": 8, "sparsify": 3}),
    "TopK(32), K = 12288": (1.0, {"saelens": 8, "sparsify": 2}),
    "L1, K = 3072": (3.0, {"saelens": 3}),
}


def judge(figures: Figures) -> list[Wanted]:
    """Every line that these figures can speak to."""
    found = [line for cell, (most, peers) in STEPS.items() for line in steps(cell, figures.get(cell, {}), most, peers)]
    if "retell" in figures.get("memory", {}):
        mine = figures["memory"]["retell"]
        beyond = mine.get("peak_mb", math.nan) - mine.get("own_mb", math.nan)
        found.append(Wanted("TopK(32), K = 12288: MB of a step beyond what it must hold", beyond, 60, True))
    if "frontier" in figures:
        found += frontier(figures["frontier"]) + in_time(figures["frontier"], figures.get("in time", {}))
    found += [Wanted(f"{name}: off by", one["off"], 0.05, True) for name, one in figures.get("dials", {}).items()]
    return found


def steps(cell: str, f: Figures, most: float, peers: dict[str, float]) -> list[Wanted]:
    """Against the product and against peers."""
    mine = f.get("retell", {}).get("steps", [])
    if not mine:
        return []
    found = [Wanted(f"{cell}: step / product", ratio(mine, f.get("products", {}).get("steps", [])), most, True)]
    for peer, least in peers.items():
        if f.get(peer, {}).get("steps"):
            found.append(Wanted(f"{cell}: {peer} / retell", ratio(f[peer]["steps"], mine), least, False))
    return found


def frontier(f: Figures) -> list[Wanted]:
    """Least FVU at each L0 over codes, retell's over the peers'."""
    found = []
    for level in map(str, LEVELS):
        theirs = least(f, level, own=False)
        if math.isfinite(theirs):
            figure = least(f, level, own=True) / theirs
            found.append(Wanted(f"L0 = {level}: least FVU, retell / best peer", figure, 1.0, True))
    default = f.get("retell, defaults, TopK", {}).get("32", {}).get("fvu", math.nan)
    found.append(Wanted("TopK(32) with defaults: FVU", default, 0.150, True))
    dead = max((at["dead"] for name, row in f.items() if name.startswith("retell") for at in row.values()),
               default=math.nan)  # fmt: skip
    return [*found, Wanted(f"dead units, at most, of {', '.join(CODES)}", dead, 0.01, True)]


def in_time(f: Figures, then: Figures) -> list[Wanted]:
    """The same, of peers when retell's epochs are over."""
    found = []
    for level in map(str, LEVELS):
        theirs = min((row["fvu"][level] for row in then.values() if math.isfinite(row["fvu"][level])), default=math.inf)
        if math.isfinite(theirs):
            figure = least(f, level, own=True) / theirs
            found.append(Wanted(f"L0 = {level}: the same, at equal seconds", figure, 1.0, True))
    return found


def least(f: Figures, level: str, *, own: bool) -> float:
    """The least FVU at an L0 of retell, or of the peers; inf where none is known, as no fit reaches it."""
    rows = [row for name, row in f.items() if name.startswith("retell") is own and level in row]
    return min((row[level]["fvu"] for row in rows), default=math.inf)
