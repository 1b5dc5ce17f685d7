"""FVU against L0: which fits there are to do, and what those that are done say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import mean
from typing import Any

import numpy as np
import torch

from ..measures import Crew
from ..process import ROOT
from .store import Record, Store, key

K = 3072
EPOCHS = 7
LEVELS = 8, 16, 32, 64
CODES = "TopK", "BatchTopK", "L1", "JumpReLU"
RATES = 1e-3, 3e-3, 1e-2
KEPT = 32  # the amount of which dictionaries are kept
NEAR = 1.1  # factor by which a level may lie outside the L0 that were tried
GUESS = 45.0  # seconds of a fit of which nothing is known
# A processor without such products would do them many times slower than float32.
FAST = "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"
OWN = {"retell": {"early_stopping": False}, "retell, defaults": {}}


def unit(crew: Crew, label: str, code: str, amount: float, rate: float | None, seed: int, **more: Any) -> Record:
    """What a fit is known by: a newer version of a library, or other sources of retell, make other fits."""
    peer = label.split(",")[0]
    hello = crew[peer].hello
    version = hello["source"] or next(iter(hello["versions"].values()))
    found = {"library": label, "version": version, "code": code, "amount": amount, "rate": rate, "seed": seed}
    return {**found, "K": K, "epochs": EPOCHS, "precision": FAST if rate else "float32", **more}


def first(crew: Crew, labels: list[str], codes: list[str]) -> Iterator[Record]:
    """The units of the first seed, peers at every rate; at one amount in float32 too; and fits of one epoch."""
    for code in codes:
        for label in labels:
            amounts = crew[label.split(",")[0]].hello["codes"].get(code, ())
            if label in OWN:
                yield from (unit(crew, label, code, amount, None, 0) for amount in amounts)
                continue
            yield from (unit(crew, label, code, amount, rate, 0) for amount in amounts for rate in RATES)
            yield from (unit(crew, label, code, amount, rate, 0, epochs=1) for amount in amounts for rate in RATES)
            if code == "TopK" and FAST != "float32":
                yield from (unit(crew, label, code, KEPT, rate, 0, precision="float32") for rate in RATES)


def further(crew: Crew, labels: list[str], codes: list[str], store: Store, seeds: int) -> Iterator[Record]:
    """The units of the other seeds, peers at the rates that are best at some level."""
    for seed in range(1, seeds):
        for code in codes:
            for label in labels:
                amounts = crew[label.split(",")[0]].hello["codes"].get(code, ())
                for rate in [None] if label in OWN else sorted(best_rates(crew, store, label, code)):
                    yield from (unit(crew, label, code, amount, rate, seed) for amount in amounts)


def best_rates(crew: Crew, store: Store, label: str, code: str) -> set[float]:
    """Of each level the rate of least FVU, first seed."""
    best = set()
    for level in LEVELS:
        by_rate = {rate: at(crew, store, label, code, level, rate, 0) for rate in RATES}
        known = {rate: fvu for rate, fvu in by_rate.items() if not math.isnan(fvu)}
        if known:
            best.add(min(known, key=lambda rate: known[rate]))
    return best


def at(crew: Crew, store: Store, label: str, code: str, level: float, rate: float | None, seed: int,
       word: str = "fvu") -> float:  # fmt: skip
    """FVU at an L0, log-log between the L0 of the fits; nan beyond them."""
    done = [store.fits.get(key(unit(crew, label, code, amount, rate, seed)))
            for amount in crew[label.split(",")[0]].hello["codes"].get(code, ())]  # fmt: skip
    return between([(one["l0"], one[word]) for one in done if one and "cannot" not in one], level)


def between(points: list[tuple[float, float]], level: float) -> float:
    """The value at a level, log-log between points; nan beyond them."""
    points = sorted((x, y) for x, y in points if x > 0 and y > 0)
    if not points or not points[0][0] / NEAR <= level <= points[-1][0] * NEAR:
        return math.nan
    x, y = np.log(np.array(points)).T
    return float(np.exp(np.interp(math.log(level), x, y)))


def run(crew: Crew, store: Store, units: list[Record]) -> None:
    """Do what is not done."""
    left = [one for one in units if one not in store]
    print(f"frontier: {len(units) - len(left)} of {len(units)} fits are done; about", duration(store, left), flush=True)
    for number, one in enumerate(left, 1):
        label = one["library"]
        asked = {word: one[word] for word in ("code", "amount", "rate", "seed", "K", "precision")}
        name = "-".join(str(one[word]) for word in ("library", "code", "rate", "seed", "precision", "version"))
        keep = one["amount"] == KEPT and one["epochs"] == EPOCHS
        more = {"keep": str(ROOT / f".bench/dictionaries/{name}.npy")} if keep else {}
        own = {"more": OWN[label]} if label in OWN else {}
        answer = crew[label.split(",")[0]].ask("train", 7200, asked=asked, epochs=one["epochs"], **more, **own)
        if "cannot" in answer:
            crew.forget(label.split(",")[0])  # so that the next fit has a process of its own
        else:
            store.add(one, answer | {"file": more.get("keep", "")})
        said = answer.get("cannot") or "FVU {fvu:.4f}  L0 {l0:6.1f}  dead {dead:.1%}  {seconds:.0f} s".format(**answer)
        what = f"{label} {one['code']}({one['amount']}) rate {one['rate']} seed {one['seed']} epochs {one['epochs']}"
        print(f"  {number}/{len(left)}  {what:70} {said}", flush=True)


def duration(store: Store, left: list[Record]) -> str:
    """How long these take, by those that are done."""
    seconds = 0.0
    for one in left:
        like = [r["seconds"] / r["unit"]["epochs"] for r in store.found(library=one["library"], code=one["code"])]
        seconds += (mean(like) if like else GUESS / EPOCHS) * one["epochs"]
    return f"{seconds / 60:.0f} min for the other {len(left)}"
