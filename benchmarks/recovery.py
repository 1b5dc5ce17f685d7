"""How much of a known world sparse dictionaries find: retell's beside SAELens', on the same rows.

    python benchmarks/recovery.py [--seeds N] [--rows N] [--epochs N] [--threads N] [--peers retell,saelens]
                                  [--methods a,b,...] [--store FILE] [--json FILE] [--no-fits] [--no-bars]
    python benchmarks/recovery.py --published [--run METHOD]

Worlds are those of SynthSAEBench (Chanin & Garriga-Alonso 2026, arXiv 2602.14687), drawn by synthetic.py, which
check_synthetic.py holds against SAELens' own generator: features that fire by a Zipf law, in trees whose siblings
exclude each other, correlated, and more of them than columns.

The small cut keeps what makes the published world hard, at a sixteenth of its features: more of them than columns
(1,024 in 256), the Zipf law from 0.4 down to 5e-4, two thirds of them in trees of branching 4 whose siblings exclude
each other (32 trees of depth 2), the copula of rank 25, sizes, spreads and bias, 4 % as many active features a row as
columns (10.8; published 34 in 768), a unit for every fourth feature (256; published 4,096 of 16,384), and batches of
1,024 rows. k is 8 or 6, to 10.8 as the published L0 of 25 and 20 to 34; of the 256 most frequent features 8.2 fire in
a row. What is less: columns, so vectors overlap more; features a column, 4 in place of 21; and rows, 1,000,000 seen
twice in place of 200,000,000.

Both libraries see the same rows and are each at their best, by F1 of the first seed, of two amounts, three for L1, and
of the rates 3e-2, 1e-2, 3e-3 and 1e-3. The amount is k, for L1 the L0 that retell is asked for and SAELens'
coefficient; a rate of None is retell's default, 1e-2 here. Figures are of 20,000 other rows, by SynthSAEBench's
definitions: means over seeds, standard deviations behind. Fits are kept, a line each, in --store and not done again, so
that a run that is interrupted goes on. --data is not needed.

--published says how long the published configuration takes here, 200,000,000 rows of 16,384 features in 768 columns,
4,096 units and batches of 1,024, by the rates at which rows are drawn and steps are taken; --run does it.

Ends with what is wanted of retell, each met or not, and with 1 if one is not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import show as common
from peers.bars import Wanted, record
from peers.bars import show as show_bars
from peers.dictionaries.recovered import WORDS
from peers.dictionaries.store import Record, Store, key
from peers.dictionaries.synthetic import Law, World
from peers.measures import Crew, Figures, Row
from peers.process import ROOT

SMALL, K, BATCH, TEST = Law(features=1024, columns=256, trees=32, depth=2), 256, 1024, 20_000
METHODS: dict[str, dict[str, tuple[float, ...]]] = {  # what is tried of each
    "TopK": {"retell": (8, 6), "saelens": (8, 6)},
    "BatchTopK": {"retell": (8, 6), "saelens": (8, 6)},
    "Matryoshka": {"retell": (8, 6), "saelens": (8, 6)},
    "L1": {"retell": (8, 6, 4), "saelens": (2, 4, 8)},
}
RATES: dict[str, tuple[float | None, ...]] = {"retell": (None, 3e-2, 3e-3, 1e-3), "saelens": (1e-2, 3e-2, 3e-3, 1e-3)}
PUBLISHED = {  # of SynthSAEBench-16k at L0 = 25 and 20: F1, MCC, uniqueness, explained variance
    "BatchTopK": ((0.732, 0.757, 0.984, 0.792), (0.818, 0.753, 0.976, 0.789)),
    "Matryoshka": ((0.879, 0.793, 0.999, 0.779), (0.860, 0.746, 0.987, 0.770)),
    "Matching pursuit": ((0.446, 0.693, 0.828, 0.835), (0.444, 0.675, 0.755, 0.827)),
    "L1": ((0.556, 0.604, 0.898, 0.765), (0.578, 0.583, 0.853, 0.750)),
    "JumpReLU": ((0.732, 0.753, 0.989, 0.795), (0.824, 0.743, 0.978, 0.791)),
}
WHOLE, WHOLE_K, WHOLE_L0, WHOLE_ROWS = Law(), 4096, 25, 200_000_000
STEPS = 16  # of the published configuration that are timed


def folder(rows: int, seed: int) -> Path:
    """The rows of a world of the small cut, drawn if they are not there."""
    place = ROOT / f".bench/recovery/{rows}-{seed}"
    if not (place / "world.npz").exists():
        place.mkdir(parents=True, exist_ok=True)
        world = World(SMALL, seed)
        np.save(place / "train.npy", world.sample(rows, 2 * seed)[0])
        x, codes = world.sample(TEST, 2 * seed + 1)
        known = {"row": codes.row, "feature": codes.feature, "size": codes.size}
        np.savez(place / "world.npz", test=x, vectors=world.vectors, **known)
    return place


class Fits:
    """What has been fitted, and what is missing."""

    def __init__(self, crew: Crew, store: Store, given: argparse.Namespace) -> None:
        self.crew, self.store = crew, store
        self.rows, self.epochs, self.threads = given.rows, given.epochs, given.threads

    def unit(self, peer: str, method: str, amount: float, rate: float | None, seed: int) -> Record:
        hello = self.crew[peer].hello
        version = hello["source"] or next(iter(hello["versions"].values()))
        found = {"library": peer, "version": version, "code": method, "amount": amount, "rate": rate, "seed": seed}
        return {**found, "K": K, "rows": self.rows, "epochs": self.epochs, "law": repr(SMALL)}

    def best(self, peer: str, method: str) -> tuple[float, float | None]:
        """The amount and the rate of the highest F1, first seed."""
        tried = [(amount, rate) for amount in METHODS[method][peer] for rate in RATES[peer]]
        done = {one: self.store.fits.get(key(self.unit(peer, method, *one, 0)), {}).get("f1", -1) for one in tried}
        return max(done, key=lambda one: done[one])

    def do(self, peer: str, method: str, amount: float, rate: float | None, seed: int) -> None:
        """One fit, unless it is done."""
        unit = self.unit(peer, method, amount, rate, seed)
        if unit in self.store:
            return
        asked = {"code": method, "K": K, "amount": amount, "rate": rate, "seed": seed}
        how = {"folder": str(folder(self.rows, seed)), "epochs": self.epochs, "batch": BATCH, "threads": self.threads}
        answer = self.crew[peer].ask("recover", 3600, asked=asked, **how)
        if "cannot" in answer:
            self.crew.forget(peer)
        else:
            self.store.add(unit, answer)
        said = answer.get("cannot") or "  ".join(f"{word} {answer[word]:.3f}" for word in (*WORDS, "seconds"))
        print(f"  {peer} {method}({amount:g}) rate {rate} seed {seed}: {said}", flush=True)

    def all(self, methods: list[str], seeds: int) -> None:
        """Every fit that is not done."""
        for method in methods:
            for peer in self.crew.peers:
                for amount in METHODS[method][peer]:
                    for rate in RATES[peer]:
                        self.do(peer, method, amount, rate, 0)
                for seed in range(1, seeds):
                    self.do(peer, method, *self.best(peer, method), seed)

    def figures(self, methods: list[str], seeds: int) -> Figures:
        """Means and standard deviations over seeds."""
        found: Figures = {}
        for method in methods:
            for peer in self.crew.peers:
                amount, rate = self.best(peer, method)
                units = [self.unit(peer, method, amount, rate, seed) for seed in range(seeds)]
                done = [one for unit in units if (one := self.store.fits.get(key(unit))) and "f1" in one]
                if done:
                    words = {word: [one[word] for one in done] for word in (*WORDS, "seconds")}
                    found[f"{method}, {peer}"] = {"amount": amount, "rate": rate, "seeds": len(done), **words}
        return found


def show(figures: Figures) -> None:
    """The small cut, and the published table."""
    print(f"{SMALL.features} features in {SMALL.columns} columns, {K} units")
    lines: list[tuple[Any, ...]] = []
    for name, f in figures.items():
        cells = [f"{mean(f[word]):.3f} ± {pstdev(f[word]):.3f}" for word in WORDS]
        lines.append((name, f"{f['amount']:g}", f["rate"], f["seeds"], *cells, mean(f["seconds"])))
    common.table(("", "amount", "rate", "seeds", *WORDS, "seconds"), lines)
    print("Published, SynthSAEBench-16k: 16,384 features in 768 columns, 4,096 units, 200,000,000 rows, at L0 25 | 20")
    pairs = [(name, *(f"{a:.3f} | {b:.3f}" for a, b in zip(*two, strict=True))) for name, two in PUBLISHED.items()]
    common.table(("", "f1", "mcc", "unique", "explained"), pairs)


def judge(figures: Figures) -> list[Wanted]:
    """At least SAELens' for each method, and the best at least 0.90 and 0.80."""
    found = []
    for word, least in (("f1", 0.90), ("mcc", 0.80)):
        for method in METHODS:
            mine, other = (figures.get(f"{method}, {peer}", {}).get(word) for peer in ("retell", "saelens"))
            if mine and other:
                found.append(Wanted(f"{method}: {word} less SAELens'", mean(mine) - mean(other), 0.0, False))
        own = [mean(f[word]) for name, f in figures.items() if name.endswith("retell")]
        if own:
            found.append(Wanted(f"best {word}", max(own), least, False))
    return found


def published(run: str) -> None:
    """How long the published configuration takes; and a fit of it, if asked for."""
    from peers.dictionaries import retell
    from peers.dictionaries.asked import Asked
    from peers.dictionaries.recovered import score

    start = time.perf_counter()
    world = World(WHOLE, 0)
    print(f"the world is drawn in {time.perf_counter() - start:.0f} s", flush=True)
    world.sample(BATCH, 0)
    start = time.perf_counter()
    x = world.sample(STEPS * BATCH, 1)[0]
    draw = (time.perf_counter() - start) / len(x)
    for method in ("TopK", "BatchTopK", "Matryoshka"):
        step = retell.seconds_a_row(Asked(method, WHOLE_K, WHOLE_L0, rate=None), x, BATCH)
        hours = [WHOLE_ROWS * one / 3600 for one in (draw, step)]
        print(f"{method}: {hours[0]:.1f} h to draw rows, {hours[1]:.1f} h of steps", flush=True)
    if run:
        asked = Asked(run, WHOLE_K, WHOLE_L0, rate=None)
        fit, seconds = retell.streamed(asked, world.blocks(WHOLE_ROWS, 2), WHOLE_ROWS, BATCH)
        test, codes = world.sample(500_000, 3)
        found = score(fit, torch.from_numpy(test), codes, world.vectors)
        print(run, found, f"{seconds / 3600:.1f} h", flush=True)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    several = {"type": lambda text: text.split(",")}
    options.add_argument("--data", type=Path, help="not needed")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--peers", default=list(RATES), **several)
    options.add_argument("--methods", default=list(METHODS), **several)
    options.add_argument("--store", type=Path, default=ROOT / ".bench/recovery-results.jsonl")
    options.add_argument("--json", type=Path, default=ROOT / ".bench/recovery.json")
    options.add_argument("--no-fits", action="store_true", help="show what is done")
    options.add_argument("--no-bars", action="store_true")
    options.add_argument("--published", action="store_true")
    options.add_argument("--run", default="", metavar="METHOD", help="with --published: fit it, which takes hours")
    given = options.parse_args()
    if given.published:
        published(given.run)
        return 0
    if unknown := {*given.peers, *given.methods} - {*RATES, *METHODS}:
        options.error(f"there is no {', '.join(sorted(unknown))}")
    rows = [Row(peer, peer, {}) for peer in given.peers]
    crew = Crew(rows, Path(), threads=given.threads, venv="sparse", worker="peers.dictionaries.worker")
    try:
        head = common.header(crew, given.seeds)
        crew.rows = [row for row in rows if not crew[row.peer].cannot]
        fits = Fits(crew, Store(given.store), given)
        if not given.no_fits:
            fits.all(given.methods, given.seeds)
        figures = fits.figures(given.methods, given.seeds)
    finally:
        crew.end()
    show(figures)
    wanted = judge(figures)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps({"header": head, "figures": figures, "wanted": record(wanted)}, indent=1) + "\n")
    return 0 if given.no_bars else show_bars(wanted)


if __name__ == "__main__":
    sys.exit(main())
