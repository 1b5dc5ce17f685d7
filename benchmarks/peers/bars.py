"""What is wanted of retell, and whether the figures show it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .measures import Figures, median, ratio


class Wanted(NamedTuple):
    """A figure, and the bar it must not pass: from above if `most`, else from below."""

    what: str
    figure: float
    bar: float
    most: bool

    @property
    def met(self) -> bool:
        """A figure that is not there meets nothing."""
        return self.figure <= self.bar if self.most else self.figure >= self.bar


def judge(figures: Figures) -> list[Wanted]:
    """Every line that these figures can speak to."""
    found = []
    for part, judged in (
        ("W2 batch 256", small),
        ("W1 batch 128", lambda f: products("W1 batch 128", f, 1.25)),
        ("W1 batch 1024", large),
        ("tables", tables),
        ("W1 until", lambda f: until("W1", f, 4)),
        ("W2 until", lambda f: until("W2", f, 8)),
        ("W3", linear),
        ("W5 W2", lambda f: [*encode("W2", f), *flat(f)]),
        ("W5 W1", lambda f: encode("W1", f)),
        ("memory", memory),
    ):
        if part in figures and any(name.startswith("retell") for name in [*figures[part], *names(figures[part])]):
            found += judged(figures[part])
    return found


def names(figures: Figures) -> list[str]:
    """The peers of the tables, which stand one level below."""
    return [key for one in figures.values() if isinstance(one, dict) for key in one]


def seconds(figures: Figures, name: str, word: str = "epochs") -> list[float]:
    return figures.get(name, {}).get(word, [])


def products(cell: str, f: Figures, bar: float) -> list[Wanted]:
    if "products" not in f:
        return []
    return [Wanted(f"{cell}: epoch / products", ratio(seconds(f, "retell"), seconds(f, "products")), bar, True)]


def small(f: Figures) -> list[Wanted]:
    bars = {"plain": 8, "mlp": 2, "pyod": 10, "pythae": 10, "encdr": 10, "skorch": 10}
    cell = "W2 batch 256"
    return products(cell, f, 1.8) + [
        Wanted(f"{cell}: {peer} / retell", ratio(seconds(f, peer), seconds(f, "retell")), bar, False)
        for peer, bar in bars.items()
        if peer in f
    ]


def large(f: Figures) -> list[Wanted]:
    errors = [f.get(name, {}).get("test_mse") for name in ("retell", "retell float32")]
    off = abs(errors[0] / errors[1] - 1) if all(errors) else math.nan
    return [
        *products("W1 batch 1024", f, 0.70),
        Wanted("W1 batch 1024: test error off that of float32", off, 0.005, True),
    ]


def tables(f: Figures) -> list[Wanted]:
    mine, other = (
        [one[peer].get("seconds", math.nan) for one in f.values() if peer in one] for peer in ("retell", "pyod")
    )
    return [
        Wanted("tables: in all, retell / PyOD", sum(mine) / sum(other) if other else math.nan, 0.2, True),
        Wanted("tables: longest, seconds", max(mine), 60, True),
    ]


def until(workload: str, f: Figures, bar: float) -> list[Wanted]:
    peers = {name: one["seconds"] for name, one in f.items() if name != "retell" and one["seconds"]}
    peers = {name: seconds for name, seconds in peers.items() if not name.endswith("tuned")}
    if not peers:
        return []
    best = min(peers, key=lambda name: median(peers[name]))
    figure = ratio(peers[best], seconds(f, "retell", "seconds"))
    return [Wanted(f"{workload}: time to result, best peer ({best}) / retell", figure, bar, False)]


def linear(f: Figures) -> list[Wanted]:
    others = [one["seconds"] for name, one in f.items() if name.startswith("pca") and one["seconds"]]
    figure = ratio(f["retell exact"]["seconds"], min(others, key=median)) if others else math.nan
    optimum = min((one["train_mse"] for one in f.values() if one["seconds"]), default=math.nan)
    return [
        Wanted("W3: retell / fastest PCA solver", figure, 1.0, True),
        Wanted("W3: error / PCA's", f["retell exact"].get("train_mse", math.nan) / optimum, 1.01, True),
    ]


def encode(workload: str, f: Figures) -> list[Wanted]:
    mine: dict[str, Any] = f["retell"]
    found = [
        Wanted(f"W5 {workload}'s encoder: retell / {peer}", ratio(mine["seconds"], f[peer]["seconds"]), bar, True)
        for peer, bar in (("products", 1.3), ("onnx", 1.0), ("plain", 1.0))
        if peer in f
    ]
    row = mine.get("microseconds", math.nan)
    return [*found, Wanted(f"W5 {workload}'s encoder: one row, microseconds", row, 500, True)]


def flat(f: Figures) -> list[Wanted]:
    more = f["retell"].get("peak_mb", math.nan) - f["retell"].get("peak_mb_of_a_tenth", math.nan)
    return [Wanted("W5: MB more for 1,000,000 rows than for a tenth", more, 16, True)]


def memory(f: Figures) -> list[Wanted]:
    return [
        Wanted(f"W2: peak above the rows, MB, {name}", (f[name]["peaks"][0] or math.nan), 60, True)
        for name in ("retell", "retell, defaults")
        if name in f and not f[name]["cannot"]
    ]


def record(wanted: list[Wanted]) -> list[Figures]:
    """For the file."""
    return [one._asdict() | {"met": one.met} for one in wanted]


def show(wanted: list[Wanted]) -> int:
    """Print them; 1 if one is not met."""
    print("Wanted")
    for one in wanted:
        sign = "<=" if one.most else ">="
        print(f"  {one.what:62}{one.figure:10.4g}  {sign} {one.bar:<6g} {'met' if one.met else 'NOT met'}")
    missed = sum(not one.met for one in wanted)
    print(f"\n{len(wanted) - missed} of {len(wanted)} met")
    return int(missed > 0)
