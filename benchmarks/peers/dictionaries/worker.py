"""One library in a process of its own: a JSON line in, a JSON line out.

    python -m peers.dictionaries.worker NAME DATA        (in the folder benchmarks)

    {"do": "steps", "asked": {"code": "TopK", "K": 3072, "amount": 32}, "n": 4}
    {"seconds": 0.52}

While it waits for a line the process does nothing.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

START = time.perf_counter()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from peers import memory  # noqa: E402
from peers.dictionaries.asked import BATCH, Asked, batches, rows, scaled  # noqa: E402
from peers.dictionaries.recovered import score  # noqa: E402
from peers.dictionaries.synthetic import Codes  # noqa: E402
from peers.serve import Answer, serve, set_threads  # noqa: E402

SEVERAL = 14  # batches in memory that steps go round, an epoch of them
BLOCK = 1000  # rows judged at a time
EARLY = 2, 4, 8  # steps after which a fit is judged too, before its first epoch is over


class Judge:
    """Test rows, and how much there is to explain in them."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        self.total = float((x - x.mean(0)).double().square().sum())

    @torch.no_grad()
    def __call__(self, fit: Any) -> tuple[float, float]:
        """FVU and mean L0."""
        error, active = 0.0, 0
        for x in self.x.split(BLOCK):
            h = fit.encode(x)
            error += float((x - fit.decode(h)).double().square().sum())
            active += int((h > 0).sum())
        return error / self.total, active / len(self.x)


@torch.no_grad()
def dead(fit: Any, x: torch.Tensor) -> float:
    """Share of units silent on every row."""
    alive = torch.stack([(fit.encode(some) > 0).any(0) for some in x.split(BLOCK)]).any(0)
    return float((~alive).double().mean())


class Worker:
    """What can be asked; a method's name is the word of "do"."""

    def __init__(self, peer: Any, data: str) -> None:
        self.peer, self.data, self.fits = peer, data, dict[Asked, Any]()

    def first(self) -> torch.Tensor:
        """The first batches, in the units that the library wants."""
        train = (rows if hasattr(self.peer, "train") else scaled)(self.data)[0]
        order = next(batches(len(train), 1, 0))
        order = torch.cat([order, *(some for some, _ in zip(batches(len(train), 1, 1), range(SEVERAL), strict=False))])
        return train[order[: SEVERAL * BATCH]]

    def steps(self, asked: Answer, n: int, warm: int = 2) -> Answer:
        """Seconds a step; the first time after `warm` others."""
        what = Asked(**asked)
        if what not in self.fits:
            self.fits.clear()  # one is in memory at a time
            x = self.first()
            self.fits[what] = self.taking(self.peer.Fit(what, x if hasattr(self.peer.Fit, "epoch") else x[:BATCH]), x)
            self.fits[what](warm)
        start = time.perf_counter()
        taken = self.fits[what](n)
        return {"seconds": (time.perf_counter() - start) / taken}

    def taking(self, fit: Any, x: torch.Tensor) -> Callable[[int], int]:
        """A function that takes at least n steps and says how many."""
        if hasattr(fit, "epoch"):

            def epochs(n: int) -> int:
                several = -(-n // SEVERAL)
                for _ in range(several):
                    fit.epoch()
                return several * SEVERAL

            return epochs
        some = x.split(BATCH)

        def steps(n: int) -> int:
            for i in range(n):
                fit.step(some[i % SEVERAL])
            return n

        return steps

    def memory(self, asked: Answer) -> Answer:
        """MB at the peak of steps beyond rows, values, gradients and two moments of what is learned, and one batch."""
        small = Asked(**{**asked, "K": 64, "amount": min(asked["amount"], 8)})
        x = self.first()
        self.taking(self.peer.Fit(small, x if hasattr(self.peer.Fit, "epoch") else x[:BATCH]), x)(SEVERAL)
        with memory.Peak() as start:
            pass
        fit = self.peer.Fit(Asked(**asked), x if hasattr(self.peer.Fit, "epoch") else x[:BATCH])
        with memory.Peak() as peak:
            self.taking(fit, x)(SEVERAL)
        own = (4 * fit.numbers() + BATCH * x.shape[1]) * 4 / 2**20
        return {"peak_mb": peak.before + peak.mb - start.before, "own_mb": own}

    def train(self, asked: Answer, epochs: int, keep: str = "", more: Answer | None = None) -> Answer:
        """A fit over all rows: [epochs, FVU, L0, seconds] of the test rows on the way, and silent units' share."""
        what, curve = Asked(**asked), []
        own = hasattr(self.peer, "train")
        train, test = (rows if own else scaled)(self.data)
        judge, spent, since = Judge(test), 0.0, time.perf_counter()

        def after(number: float, fit: Any) -> None:
            nonlocal spent, since
            spent += time.perf_counter() - since
            curve.append([number, *judge(fit), spent])
            since = time.perf_counter()

        fit = self.peer.train(what, train, epochs, after, **(more or {})) if own else self.epochs(what, epochs, after)
        fvu, l0 = judge(fit)
        if keep:
            Path(keep).parent.mkdir(parents=True, exist_ok=True)
            np.save(keep, fit.dictionary().detach().float().numpy().astype(np.float16))
        return {"fvu": fvu, "l0": l0, "dead": dead(fit, train), "curve": curve, "seconds": spent}

    def dial(self, asked: Answer, word: str, target: float, epochs: int) -> Answer:
        """What a fit has reached on the test rows that was asked for `target`."""
        train, test = rows(self.data)
        fvu, l0 = Judge(test)(self.peer.dialled(Asked(**asked), train, word, target, epochs))
        return {"fvu": fvu, "l0": l0, "reached": l0 if word == "target_l0" else fvu}

    def recover(self, asked: Answer, folder: str, epochs: int, batch: int) -> Answer:
        """What a fit to rows of a known world has found, and its seconds."""
        what, x = Asked(**asked), torch.from_numpy(np.load(Path(folder) / "train.npy"))
        world, start = np.load(Path(folder) / "world.npz"), time.perf_counter()
        if hasattr(self.peer, "train"):
            fit = self.peer.train(what, x, epochs, lambda *_: None, batch_size=batch)
        else:
            fit = self.steps_of(what, x, list(batches(len(x), epochs, what.seed, batch)), lambda *_: None)
        seconds = time.perf_counter() - start
        test, codes = torch.from_numpy(world["test"]), (world[word] for word in ("row", "feature", "size"))
        return {**score(fit, test, Codes(*codes, len(test)), world["vectors"]), "seconds": seconds}

    def epochs(self, what: Asked, epochs: int, after: Callable[[float, Any], None]) -> Any:
        """A fit to all rows of a library that has steps."""
        train = scaled(self.data)[0]
        order = list(batches(len(train), epochs, what.seed))
        return self.steps_of(what, train, order, lambda n, fit: after(n * epochs / len(order), fit))

    def steps_of(self, what: Asked, x: torch.Tensor, order: list[torch.Tensor], after: Callable[..., None]) -> Any:
        """One step for each batch of rows; `after(steps, fit)` follows the first few and each epoch's last."""
        fit = self.peer.Fit(replace(what, steps=len(order)), x[order[0]])
        taken = 0
        for number, some in enumerate(order, 1):
            fit.step(x[some])
            taken += len(some)
            if number in EARLY or taken % len(x) == 0:
                after(number, fit)
        return fit


def begin(name: str, data: str) -> tuple[Answer, Callable[[Answer], Answer]]:
    """What it says first, and what answers."""
    peer = importlib.import_module(f"peers.dictionaries.{name}")
    worker, reasons = Worker(peer, data), getattr(peer, "CANNOT", {})
    versions = {package: version(package) for package in peer.PACKAGES}

    def answer_to(asked: Answer) -> Answer:
        do, code = asked.pop("do"), asked["asked"]["code"]
        if do in reasons or code not in peer.CODES:
            raise NotImplementedError(reasons.get(do) or reasons.get(code, f"it has no {code}"))
        set_threads(asked.pop("threads", 2))
        answer: Answer = getattr(worker, do)(**asked)
        return answer

    told = {"codes": peer.CODES, "note": getattr(peer, "NOTE", ""), "source": getattr(peer, "SOURCE", "")}
    return {"import_seconds": time.perf_counter() - START, "versions": versions, **told}, answer_to


if __name__ == "__main__":
    serve(lambda: begin(*sys.argv[1:]))
