"""One library in a process of its own: a JSON line in, a JSON line out.

    python -m peers.worker NAME DATA        (in the folder benchmarks)

    {"do": "fit", "workload": "W2", "epochs": 5, "batch": 256, "threads": 2, "options": {}}
    {"seconds": 1.9, "test_mse": 0.0821, "peak_mb": 41.2}

An answer {"cannot": reason} says why there is none. While it waits for a line the process does nothing.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache
from importlib.metadata import version
from typing import Any

START = time.perf_counter()

import numpy as np  # noqa: E402

from peers import memory, workloads  # noqa: E402
from peers.serve import Answer, serve, set_threads  # noqa: E402

SAYS: Answer = {"note": "", "codes": ("relu", "identity"), "usual": {}}
best: dict[str, str] = {}  # of several ways to do a thing, the one that was fastest in the first round


class Enough(Exception):
    """Ends a fit from within."""


class Watch:
    """After each epoch: the test error, off the clock; ends the fit at the target or the limit."""

    def __init__(self, test: np.ndarray, target: float, limit: float) -> None:
        self.test, self.target, self.limit = test, target, limit
        self.seconds, self.epochs, self.mse, self.since = 0.0, 0, np.inf, time.perf_counter()

    def __call__(self, reconstruct: Callable[[np.ndarray], np.ndarray]) -> None:
        self.seconds += time.perf_counter() - self.since
        self.epochs += 1
        self.mse = mse(reconstruct, self.test)
        if self.mse <= self.target or self.seconds > self.limit:
            raise Enough
        self.since = time.perf_counter()


def mse(reconstruct: Callable[[np.ndarray], np.ndarray], X: np.ndarray) -> float:
    """Squared error a cell."""
    return float(np.mean((X - reconstruct(X)) ** 2))


def timed(what: Callable[[], Any], *, fresh: bool = True) -> tuple[Any, Answer]:
    """What it gives and its seconds; `fresh`, its peak of memory too, what earlier calls have freed given back first.

    The system then hands the same pages out once more, which is on the clock.
    """
    with memory.Peak() if fresh else nullcontext() as peak:
        start = time.perf_counter()
        result = what()
        seconds = time.perf_counter() - start
    return result, {"seconds": seconds} | ({"peak_mb": peak.mb} if peak else {})


class Worker:
    """What can be asked; a method's name is the word of "do"."""

    def __init__(self, peer: Any, data: str) -> None:
        self.peer, self.data = peer, data

    def load(self, workload: str) -> Answer:
        """Have the rows in memory before the clock starts; the system may have put away what was idle for minutes."""
        for some in workloads.rows(workload, self.data):
            some.sum()
        return {}

    def fit(self, workload: str, epochs: int, batch: int, rate: float = 1e-3, options: Answer | None = None) -> Answer:
        X, test = workloads.rows(workload, self.data)
        net = workloads.NETS[workload]
        asked = {"epochs": epochs, "batch": batch, "rate": rate, **(options or {})}
        reconstruct, answer = timed(lambda: self.peer.fit(X, net, **asked))
        return answer | ({"test_mse": mse(reconstruct, test)} if reconstruct else {})

    def until(self, workload: str, cap: float, batch: int, rate: float, code: str = "relu") -> Answer:
        """Seconds of training until the test error is at the target, start-up of the fit included."""
        X, test = workloads.rows(workload, self.data)
        watch = Watch(test, workloads.TARGETS[workload], cap)
        with suppress(Enough):
            self.peer.fit(X, workloads.NETS[workload], epochs=10_000, batch=batch, rate=rate, after=watch, code=code)
        return {"seconds": watch.seconds, "epochs": watch.epochs, "mse": watch.mse, "met": watch.mse <= watch.target}

    def whole(self, workload: str, epochs: int, *, fresh: bool) -> Answer:
        """A whole fit with the defaults, of at most so many epochs; `fresh` as for `timed`."""
        X, test = workloads.rows(workload, self.data)
        reconstruct, answer = timed(lambda: self.peer.whole(X, workloads.NETS[workload], epochs), fresh=fresh)
        error = mse(reconstruct, test)
        return answer | {"epochs": epochs, "mse": error, "met": error <= workloads.TARGETS[workload]}

    def default(self, table: str = "") -> Answer:
        """A fit with nothing set."""
        X = workloads.anomaly(self.data)[table] if table else np.random.default_rng(0).normal(size=(200, 5))
        return timed(lambda: self.peer.default(X))[1]

    def linear(self, K: int, way: str) -> Answer:
        X, test = workloads.rows("W1", self.data)
        reconstruct, answer = timed(self.peer.linear(X, K)[way])
        return answer | {"train_mse": mse(reconstruct, X), "test_mse": mse(reconstruct, test)}

    @cache  # noqa: B019  # the process has one worker
    def ways(self, workload: str) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        return self.peer.encoders(workloads.NETS[workload], X=encoded(workload, self.data))

    def encode(self, workload: str, rows: int, calls: int, threads: int = 2) -> Answer:
        """`calls` calls on the first `rows` rows; the peak is above rows and codes."""
        X = encoded(workload, self.data)[:rows]
        ways = self.ways(workload)
        key = f"{workload} {rows} {threads}"
        if key not in best:
            for way in ways.values():
                way(X[:1000])
            best[key] = min(ways, key=lambda way: min(timed(lambda: ways[way](X))[1]["seconds"] for _ in range(3)))
        way = ways[best[key]]
        way(X[:1000])

        def all_calls() -> np.ndarray:
            for _ in range(calls):
                H = None  # the codes of one call at a time
                H = way(X)
            return H

        H, answer = timed(all_calls)
        return answer | {"peak_mb": answer["peak_mb"] - H.nbytes / 2**20, "way": best[key]}

    def row(self, workload: str) -> Answer:
        """Median microseconds of 2,000 calls on one row each."""
        X = encoded(workload, self.data)[:2000]
        way = next(iter(self.ways(workload).values()))
        times = []
        for i in range(2000):
            start = time.perf_counter()
            way(X[i : i + 1])
            times.append(time.perf_counter() - start)
        return {"microseconds": float(np.median(times) * 1e6)}


@cache
def encoded(workload: str, data: str) -> np.ndarray:
    """Rows to encode: a million of W2's kind, or all 10,000 digits."""
    if workload == "W2":
        return workloads.bent(1_000_000, 0)[0]
    return np.concatenate(workloads.rows(workload, data))


def begin(name: str, data: str) -> tuple[Answer, Callable[[Answer], Answer]]:
    """What it says first, and what answers."""
    peer = importlib.import_module(f"peers.{name}")
    told = {word: getattr(peer, word.upper(), unless) for word, unless in SAYS.items()}
    versions = {package: version(package) for package in peer.PACKAGES}
    worker, reasons = Worker(peer, data), getattr(peer, "CANNOT", {})
    needs = {"until": "fit", "encode": "encoders", "row": "encoders"}

    def answer_to(asked: Answer) -> Answer:
        do = asked.pop("do")
        threads = asked.get("threads", 2) if do == "encode" else asked.pop("threads", 2)
        need = needs.get(do, do)
        if do in reasons or (do != "load" and not hasattr(peer, need)):
            raise NotImplementedError(reasons.get(do) or reasons.get(need, f"it has no {need}"))
        set_threads(threads)
        answer: Answer = getattr(worker, do)(**asked)
        return answer

    return {"import_seconds": time.perf_counter() - START, "versions": versions, **told}, answer_to


if __name__ == "__main__":
    serve(lambda: begin(*sys.argv[1:]))
