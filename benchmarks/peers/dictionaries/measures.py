"""Steps, memory, dials and stability, each a function of the processes that gives figures by label."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..measures import Crew, Figures, median
from . import frontier
from .store import Store, key

CELLS = {
    "TopK(32), K = 3072": ("TopK", 3072),
    "TopK(32), K = 12288": ("TopK", 12288),
    "BatchTopK(32), K = 3072": ("BatchTopK", 3072),
    "JumpReLU, K = 3072": ("JumpReLU", 3072),
    "L1, K = 3072": ("L1", 3072),
}
SECONDS = 0.7  # that a library's part of a round takes, about
WARM = {"L1": 30, "JumpReLU": 30}  # steps before the clock starts, where a code is dense at first
LONG = 400  # steps of the schedules, so that timing ends before they do
DIALS = {"target_l0": (8, 32, 128), "target_fvu": (0.3, 0.2)}
PRECISIONS = "float32", "bfloat16"


def asked(crew: Crew, peer: str, code: str, K: int, precision: str) -> Figures:
    """With 32 active units, or a penalty from the middle of those that the frontier tries."""
    amounts = crew[peer].hello["codes"].get(code) or [32]
    amount = 32 if "TopK" in code else amounts[len(amounts) // 2]
    return {"code": code, "K": K, "amount": amount, "steps": LONG, "precision": precision}


def steps(crew: Crew, cell: str, rounds: int) -> Figures:
    """Seconds a step in every round, each library in its faster precision."""
    code, K = CELLS[cell]
    figures: Figures = {}
    for peer in crew.peers:
        own = ("float32",) if peer in ("retell", "products") or crew[peer].cannot else PRECISIONS
        tried = {p: crew[peer].ask("steps", asked=asked(crew, peer, code, K, p), n=2) for p in own}
        known = {p: answer["seconds"] for p, answer in tried.items() if "seconds" in answer}
        mine: Figures = {"steps": [], "cannot": next(iter(tried.values())).get("cannot", "")}
        if known:
            fast = min(known, key=lambda p: known[p])
            n = max(1, math.ceil(SECONDS / known[fast]))
            mine |= {"precision": fast, "n": n, "tried": known}
            crew[peer].ask("steps", asked=asked(crew, peer, code, K, fast), n=1, warm=WARM.get(code, 2))
        figures[peer] = mine
    for _ in range(rounds):
        for peer, mine in figures.items():
            if not mine["cannot"]:
                what = asked(crew, peer, code, K, mine["precision"])
                mine["steps"].append(crew[peer].ask("steps", asked=what, n=mine["n"])["seconds"])
    return figures


def peaks(crew: Crew, cell: str) -> Figures:
    """MB of memory of a step, in a process of its own that has made no other."""
    code, K = CELLS[cell]
    figures: Figures = {}
    for peer in crew.peers:
        if peer == "products":
            continue
        alone = Crew(crew.rows, crew.data, **crew.where)
        figures[peer] = alone[peer].ask("memory", asked=asked(alone, peer, code, K, "float32"))
        alone.end()
    return figures


def dials(crew: Crew, seeds: int) -> Figures:
    """What L0 or FVU a fit has that was asked for one, on the test rows and on its own."""
    figures: Figures = {}
    for word, targets in DIALS.items():
        for code in frontier.CODES:
            if word == "target_l0" and code == "TopK":
                continue  # which has it by definition
            for target in targets:
                found = [
                    crew["retell"].ask("dial", asked={"code": code, "K": frontier.K, "amount": 32, "seed": seed},
                                       word=word, target=target, epochs=frontier.EPOCHS)
                    for seed in range(seeds)
                ]  # fmt: skip
                got = [one["reached"] for one in found if "reached" in one]
                figures[f"{word} = {target}, {code}"] = {
                    "target": target,
                    "reached": got,
                    "off": max((abs(one / target - 1) for one in got), default=math.nan),
                    "cannot": found[0].get("cannot", ""),
                }
                print(f"  {word} = {target}, {code}: {found[0].get('cannot') or got}", flush=True)
    return figures


def stability(crew: Crew, store: Store, labels: list[str], seeds: int) -> Figures:
    """Cosines of matched rows of the decoder between seeds, of the fits that the frontier has kept."""
    figures: Figures = {}
    for code in ("TopK", "BatchTopK"):
        for label in labels:
            rate = None if label in frontier.OWN else best(crew, store, label, code)
            units = [frontier.unit(crew, label, code, frontier.KEPT, rate, seed) for seed in range(seeds)]
            files = [store.fits.get(key(one), {}).get("file", "") for one in units]
            kept = [np.load(file).astype(np.float32) for file in files if file and Path(file).exists()]
            if len(kept) > 1:
                cosines = np.concatenate([matched(a, b) for a, b in combinations(kept, 2)])
                figures[f"{label}, {code}({frontier.KEPT})"] = {
                    "seeds": len(kept),
                    "mean": float(cosines.mean()),
                    "quartiles": [float(q) for q in np.quantile(cosines, (0.25, 0.5, 0.75))],
                    "above_0.9": float((cosines > 0.9).mean()),
                }
    return figures


def best(crew: Crew, store: Store, label: str, code: str) -> float | None:
    """The rate of least FVU at the amount that is kept."""
    rates = {rate: frontier.at(crew, store, label, code, frontier.KEPT, rate, 0) for rate in frontier.RATES}
    known = {rate: fvu for rate, fvu in rates.items() if not math.isnan(fvu)}
    return min(known, key=lambda rate: known[rate]) if known else None


def matched(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines (K,) of the rows of two dictionaries (K, D), one to one so that their sum is largest."""
    a, b = (some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-12) for some in (a, b))
    cosines: np.ndarray = a @ b.T
    return cosines[linear_sum_assignment(-cosines)]


def levels(crew: Crew, store: Store, labels: list[str], seeds: int) -> Figures:
    """FVU at each L0: of each label and code the mean over seeds at its best rate, how many seeds, and the dead
    units of the seed that has most of them."""
    figures: Figures = {}
    for code in frontier.CODES:
        for label in labels:
            row: Figures = {}
            for level in frontier.LEVELS:
                rates = (None,) if label in frontier.OWN else frontier.RATES
                of_rate = {rate: frontier.at(crew, store, label, code, level, rate, 0) for rate in rates}
                known = {rate: fvu for rate, fvu in of_rate.items() if not math.isnan(fvu)}
                if not known:
                    continue
                rate = min(known, key=lambda r: known[r])
                each = [frontier.at(crew, store, label, code, level, rate, seed) for seed in range(seeds)]
                each = [fvu for fvu in each if not math.isnan(fvu)]
                silent = [dead(crew, store, label, code, level, rate, seed) for seed in range(len(each))]
                row[str(level)] = {"fvu": mean(each), "each": each, "rate": rate, "dead": max(silent)}
            if row:
                figures[f"{label}, {code}"] = row
    return figures


def dead(crew: Crew, store: Store, label: str, code: str, level: float, rate: float | None, seed: int) -> float:
    """Share of dead units at an L0, between the fits next to it."""
    done = [store.fits.get(key(frontier.unit(crew, label, code, amount, rate, seed)))
            for amount in crew[label.split(",")[0]].hello["codes"].get(code, ())]  # fmt: skip
    points = sorted((one["l0"], one["dead"]) for one in done if one and "cannot" not in one)
    return float(np.interp(level, *zip(*points, strict=True))) if points else math.nan


def in_time(crew: Crew, store: Store, labels: list[str], figures: Figures) -> Figures:
    """FVU at each L0 when retell's epochs are over, by the steps' seconds as they were measured.

    A peer counts by the lowest of its curves then, fits of one epoch included where they are done by then.
    """
    found: Figures = {}
    for cell, (code, K) in CELLS.items():
        timed = figures.get(cell, {})
        if K != frontier.K or not timed.get("retell", {}).get("steps"):
            continue
        limit = median(timed["retell"]["steps"]) * frontier.EPOCHS
        for label in labels:
            own = timed.get(label.split(",")[0], {}).get("steps")
            if label in frontier.OWN or not own:
                continue
            epochs = limit / median(own)
            row = {str(level): _then(crew, store, label, code, level, epochs) for level in frontier.LEVELS}
            found[f"{label}, {code}"] = {"epochs": epochs, "fvu": row}
    return found


def _then(crew: Crew, store: Store, label: str, code: str, level: float, epochs: float) -> float:
    """The least FVU at an L0 after so many epochs, over rates and lengths of the schedule."""
    amounts, known = crew[label.split(",")[0]].hello["codes"].get(code, ()), []
    for rate in frontier.RATES:
        for length in (1, frontier.EPOCHS):
            points = []
            for amount in amounts:
                one: Any = store.fits.get(key(frontier.unit(crew, label, code, amount, rate, 0, epochs=length)))
                if one and "cannot" not in one:
                    at, fvu, l0, _ = np.array([[0.0, 1.0, one["curve"][0][2], 0.0], *one["curve"]]).T
                    points.append((float(np.interp(epochs, at, l0)), float(np.interp(epochs, at, fvu))))
            known.append(frontier.between(points, level))
    return min((fvu for fvu in known if not math.isnan(fvu)), default=math.nan)
