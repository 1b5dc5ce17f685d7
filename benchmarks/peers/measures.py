"""What speed.py measures, each a function of the processes that gives figures by row."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from .process import HERE, Process

Figures = dict[str, Any]
CELLS = {"W1 batch 128": ("W1", 128), "W1 batch 1024": ("W1", 1024), "W2 batch 256": ("W2", 256)}
BEST = HERE / "best.json"
RATES = 1e-3, 3e-3, 1e-2
BATCHES = {"W1": (128, 32, 1024), "W2": (256, 1024, 4096)}
CAP = 60.0
PATIENCE = 20.0  # with a peer on its way to a target
SLOW = 10.0  # what takes longer to its target is run twice, to warm up and to be timed, and no more


class Row(NamedTuple):
    """A line of a table: a peer, and settings of it where there are several lines of one."""

    label: str
    peer: str
    options: Figures


class Crew:
    """One process for each peer, started when it is first needed."""

    def __init__(self, rows: list[Row], data: Path, **where: str) -> None:
        self.rows, self.data, self.where = rows, data, where
        self.processes: dict[str, Process] = {}

    def __getitem__(self, peer: str) -> Process:
        if peer not in self.processes:
            self.processes[peer] = Process(peer, self.data, **self.where)
        return self.processes[peer]

    @property
    def peers(self) -> list[str]:
        """Their names, each once."""
        return list(dict.fromkeys(row.peer for row in self.rows))

    def among(self, *names: str) -> list[str]:
        """Those of the names that take part."""
        return [name for name in names if name in self.peers]

    def forget(self, peer: str) -> None:
        """End its process; the next question starts another."""
        if peer in self.processes:
            self.processes.pop(peer).end()

    def end(self) -> None:
        for process in self.processes.values():
            process.end()


def median(values: list[float]) -> float:
    return statistics.median(values) if values else math.nan


def ratio(over: list[float], under: list[float]) -> float:
    """Median over the rounds of one over the other, both of the same round."""
    return median([a / b for a, b in zip(over, under, strict=False)])


def epochs(crew: Crew, cell: str, rounds: int) -> Figures:
    """Seconds an epoch, and what a fit costs beyond its epochs: `rounds` rounds with two threads, one with one."""
    figures: Figures = {row.label: warm(crew[row.peer], row, cell) for row in crew.rows}
    for threads in (*[2] * rounds, 1):
        for row in crew.rows:
            for now in {threads, 1} if row.peer == "products" else {threads}:
                if not figures[row.label]["cannot"]:
                    slope(crew[row.peer], figures[row.label], now)
    limit = figures.get("products", {})
    if limit.get("epochs") and median(limit["one_thread"]) < median(limit["epochs"]):
        limit["epochs"], limit["threads"] = limit["one_thread"][:rounds], 1
    return figures


def warm(process: Process, row: Row, cell: str) -> Figures:
    """The first fits of a process, which load what they need, and how many epochs take about a second."""
    workload, batch = CELLS[cell]
    asked = {"workload": workload, "batch": batch, "options": row.options}
    process.ask("load", workload=workload)
    five, one, three = (process.ask("fit", epochs=n, **asked) for n in (5, 1, 3))
    mine = {"asked": asked, "epochs": [], "overheads": [], "one_thread": [], "cannot": three.get("cannot", "")}
    if mine["cannot"]:
        return mine
    guess = max((three["seconds"] - one["seconds"]) / 2, three["seconds"] / 20, 1e-3)
    return mine | {"test_mse": five.get("test_mse"), "first_fit": five["seconds"], "n": max(2, math.ceil(1 / guess))}


def slope(process: Process, mine: Figures, threads: int) -> None:
    """A fit of one epoch and one of 1 + n: by how much they differ, and what is left."""
    short, long = (process.ask("fit", epochs=n, threads=threads, **mine["asked"]) for n in (1, 1 + mine["n"]))
    if "cannot" in short or "cannot" in long:
        mine["cannot"] = short.get("cannot") or long["cannot"]
        return
    epoch = (long["seconds"] - short["seconds"]) / mine["n"]
    if threads == 1:
        mine["one_thread"].append(epoch)
    else:
        mine["epochs"].append(epoch)
        mine["overheads"].append(short["seconds"] - epoch)


def peaks(crew: Crew) -> Figures:
    """Peak of memory above the rows in a fresh process: W2, batch 256, two epochs; then once more in the same."""
    figures: Figures = {}
    for row in [*crew.rows, Row("retell, defaults", "retell", {})]:
        if row.peer in ("products", "pca", "onnx") or row.peer not in crew.peers:
            continue
        process = Process(row.peer, crew.data)
        process.ask("load", workload="W2")
        if row.label == "retell, defaults":
            answers = [process.ask("whole", workload="W2", epochs=2, fresh=True) for _ in range(2)]
        else:
            asked = {"workload": "W2", "epochs": 2, "batch": 256, "options": row.options}
            answers = [process.ask("fit", **asked) for _ in range(2)]
        figures[row.label] = {"peaks": [one.get("peak_mb") for one in answers], "cannot": answers[0].get("cannot", "")}
        process.end()
    return figures


def search(crew: Crew, workload: str, cap: float) -> Figures:
    """Of each peer the batch, rate and code activation that are first at the target; a try ends when it can't win."""
    found: Figures = {}
    for peer in crew.peers:
        process = crew[peer]
        if peer == "retell" or process.cannot:
            continue
        process.ask("load", workload=workload)
        if "cannot" in process.ask("until", workload=workload, cap=0, batch=1024, rate=1e-3):  # or it is warm now
            continue
        mine = found[peer] = {"best": None, "seconds": cap, "usual": None, "cap": cap}
        codes, usual = process.hello["codes"], process.hello["usual"]
        grid = [{"batch": b, "rate": r, "code": c} for c in codes[::-1] for b in BATCHES[workload] for r in RATES[::-1]]
        for one in grid:
            answer = process.ask("until", workload=workload, cap=mine["seconds"], **one)
            if answer.get("met") and answer["seconds"] < mine["seconds"]:
                mine |= {"best": one, "seconds": answer["seconds"]}
        if usual:
            answer = process.ask("until", workload=workload, cap=cap, code=codes[0], **usual)
            mine["usual"] = answer["seconds"] if answer.get("met") else f"> {cap:.0f}"
        print(peer, workload, mine, flush=True)
    return found


def until(crew: Crew, workload: str, rounds: int) -> Figures:
    """Seconds until the target: retell's by whole default fits of 1, 2, 3 ... epochs, a peer's as its own documents
    have it, and once more by best.json. Nobody's memory is given back before."""
    best = json.loads(BEST.read_text())[workload] if BEST.exists() else {}
    figures: Figures = {}
    ladder = 1
    for number in range(rounds + 1):  # the first warms every process up
        for peer in crew.peers:
            process = crew[peer]
            process.ask("load", workload=workload)
            if peer == "retell":
                mine = figures.setdefault(peer, {"seconds": [], "setting": "defaults"})
                while not (answer := process.ask("whole", workload=workload, epochs=ladder, fresh=False)).get("met"):
                    ladder += 1
                    if "cannot" in answer or answer["seconds"] > CAP or ladder > 200:
                        break
                if number == 0 and answer.get("met"):
                    answer = process.ask("whole", workload=workload, epochs=ladder, fresh=False)
                keep(mine, answer, number, CAP)
                continue
            own = process.hello["usual"] or {"batch": BATCHES[workload][0], "rate": RATES[0]}
            settings = {
                peer: own | {"code": process.hello["codes"][0]},
                f"{peer}, tuned": best.get(peer, {}).get("best"),
            }
            for name, setting in settings.items():
                mine = figures.setdefault(name, {"seconds": [], "setting": setting})
                if not setting:
                    mine["cannot"] = "not searched: speed.py --search"
                elif not mine.get("cannot") and not (number > 1 and median(mine["seconds"]) > SLOW):
                    keep(mine, process.ask("until", workload=workload, cap=PATIENCE, **setting), number, PATIENCE)
    return figures


def keep(mine: Figures, answer: Figures, number: int, cap: float) -> None:
    """One answer of a round, which counts but for the first."""
    if "cannot" in answer or not answer["met"]:
        mine["cannot"] = answer.get("cannot", f"not within {cap:.0f} s")
    elif number:
        mine["seconds"].append(answer["seconds"])
        mine["epochs"] = answer["epochs"]


def tables(crew: Crew, names: list[str]) -> Figures:
    """Seconds of a fit with nothing set, table by table."""
    figures: Figures = {}
    for peer in crew.among("retell", "pyod"):
        crew[peer].ask("default")
    for name in names:
        figures[name] = {peer: crew[peer].ask("default", table=name) for peer in crew.among("retell", "pyod")}
    return figures


def linear(crew: Crew, rounds: int) -> Figures:
    """784 -> 32 on W1's rows, each way of each peer."""
    ways = [("retell", "exact"), *(("pca", way) for way in ("auto", "covariance_eigh", "full", "randomized"))]
    figures: Figures = {}
    for number in range(3 * rounds + 1):
        for peer, way in ways:
            if peer not in crew.peers:
                continue
            answer = crew[peer].ask("linear", K=32, way=way)
            mine = figures.setdefault(f"{peer} {way}", {"seconds": [], "cannot": answer.get("cannot", "")})
            if number and "seconds" in answer:
                mine["seconds"].append(answer.pop("seconds"))
                mine |= answer
    return figures


def encode(crew: Crew, workload: str, rounds: int) -> Figures:
    """Codes of a million rows: W2's at once (measured in 5 calls), mnist10k's in 100 calls (measured in 20)."""
    rows, calls, wanted = (1_000_000, 5, 1) if workload == "W2" else (10_000, 20, 100)
    figures: Figures = {}
    for number in range(rounds + 1):
        for peer in crew.among("retell", "plain", "onnx", "pca", "products"):
            for threads in (2, 1) if peer == "products" else (2,):
                answer = crew[peer].ask("encode", workload=workload, rows=rows, calls=calls, threads=threads)
                mine = figures.setdefault(f"{peer}, one thread" if threads == 1 else peer, {"seconds": []})
                if number and "seconds" in answer:
                    mine["seconds"].append(answer.pop("seconds") * wanted / calls)
                mine |= {key: value for key, value in answer.items() if key != "seconds"}
    if "products" in figures:
        figures["products"] = min(
            (figures.pop(name) for name in ("products", "products, one thread")), key=lambda one: median(one["seconds"])
        )
    for peer in crew.among("retell", "plain", "onnx", "pca"):
        figures[peer] |= crew[peer].ask("row", workload=workload)
    if workload == "W2" and "retell" in figures:
        small = crew["retell"].ask("encode", workload=workload, rows=100_000, calls=1)
        figures["retell"]["peak_mb_of_a_tenth"] = small.get("peak_mb")
    return figures
