"""The linear autoencoder of a file larger than one would load: seconds, memory and bytes read.

    python benchmarks/streaming.py [--gigabytes G] [--columns D] [--scratch DIR] [--rounds N] [--json FILE] [--no-bars]

Writes a float32 .npy of rows with 64 directions and noise, fits Autoencoder(32, hidden_layer_sizes=()) to
np.load(file, mmap_mode="r") in a fresh process, and beside it, each in a fresh process and in turn,

    product        reads blocks of rows, casts them to float64 and adds up x.T @ x; of blocks of 1,024, 4,096 and
                   16,384 rows the fastest counts
    IncrementalPCA scikit-learn's, 32 components, by partial_fit on blocks, as its page says for files; blocks of five
                   times the columns (its default) and of 8,192 rows. After 20 s it stops at a block's end, and the
                   seconds are those of the blocks done times all rows over theirs.

Seconds are of reading and computing, import apart. The file has just been written, so the system may still hold it in
memory: alike for all. One more fit, with the file dropped from memory, gives the bytes that came from the disk
(read_bytes of /proc/self/io, which counts mapped pages too). "peak" is resident memory, mapped pages included, above
what the process held after its imports. Errors are of the first 20,000 rows. The file is deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import bars, memory, show
from peers.measures import median, ratio
from peers.process import ROOT

K = 32
SEEN = 20_000
WAYS = "retell", "product 1024", "product 4096", "product 16384", "IncrementalPCA 0", "IncrementalPCA 8192"


def write(path: Path, gigabytes: float, columns: int) -> int:
    """The file; how many rows it has."""
    rng = np.random.default_rng(0)
    rows = int(gigabytes * 1e9 / 4 / columns)
    mix = (rng.normal(size=(64, columns)) / 8).astype(np.float32)
    with path.open("wb") as file:
        head = {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)}
        np.lib.format.write_array_header_1_0(file, head)
        for start in range(0, rows, 1 << 15):
            n = min(1 << 15, rows - start)
            z = rng.standard_normal((n, 64), dtype=np.float32) * np.linspace(2, 0.5, 64, dtype=np.float32)
            file.write(z @ mix + 0.3 * rng.standard_normal((n, columns), dtype=np.float32) + np.float32(1))
        file.flush()
        os.fsync(file.fileno())
    return rows


def retell(X: np.ndarray, _: int) -> tuple[int, Any]:
    from retell import Autoencoder

    return len(X), Autoencoder(K, hidden_layer_sizes=()).fit(X).reconstruct


def product(X: np.ndarray, size: int) -> tuple[int, Any]:
    total, outer = np.zeros(X.shape[1]), np.zeros((X.shape[1], X.shape[1]))
    for start in range(0, len(X), size):
        x = X[start : start + size].astype(np.float64)
        total += x.sum(0)
        outer += x.T @ x

    def pca(rows: np.ndarray) -> np.ndarray:
        mean = total / len(X)
        axes = np.linalg.eigh(outer / len(X) - np.outer(mean, mean))[1][:, -K:]
        return mean + (rows - mean) @ axes @ axes.T

    return len(X), pca


def incremental(X: np.ndarray, size: int) -> tuple[int, Any]:
    from sklearn.decomposition import IncrementalPCA

    size = size or 5 * X.shape[1]
    model, start = IncrementalPCA(K), time.perf_counter()
    for end in range(size, len(X) + 1, size):
        model.partial_fit(X[end - size : end])
        if time.perf_counter() - start > 20:
            break
    return end, lambda rows: model.inverse_transform(model.transform(rows))


def child(way: str, path: Path) -> None:
    """One way, in this process."""
    for module in ("retell.estimator", "sklearn.decomposition"):  # off the clock and under the peak, for all alike
        import_module(module)
    name, _, size = way.partition(" ")
    fit = {"retell": retell, "product": product, "IncrementalPCA": incremental}[name]
    X = np.load(path, mmap_mode="r")
    before = read_bytes()
    with memory.Peak() as peak:
        start = time.perf_counter()
        rows, reconstruct = fit(X, int(size or 0))
        seconds = time.perf_counter() - start
    read = read_bytes() - before
    seen = np.array(X[:SEEN])
    error = float(np.mean((seen - reconstruct(seen)) ** 2))
    seconds *= len(X) / rows
    print(json.dumps({"seconds": seconds, "share": rows / len(X), "peak_mb": peak.mb, "read": read, "error": error}))


def read_bytes() -> float:
    """Bytes that came from the disk so far; nan where the system does not say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("read_bytes")))
    except OSError:
        return float("nan")


def run(way: str, path: Path) -> dict[str, Any]:
    answer = subprocess.run(
        [sys.executable, __file__, "--child", way, "--scratch", str(path)], capture_output=True, text=True
    )
    if answer.returncode:
        return {"cannot": answer.stderr.strip().splitlines()[-1]}
    return json.loads(answer.stdout.splitlines()[-1])


def forget(path: Path) -> None:
    """Drop the file from the system's memory."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--gigabytes", type=float, default=4)
    options.add_argument("--columns", type=int, default=512)
    options.add_argument("--scratch", type=Path, help="folder for the file; a temporary one unless given")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--json", type=Path, default=ROOT / ".bench/streaming.json")
    options.add_argument("--no-bars", action="store_true")
    options.add_argument("--data", help="not needed: make bench gives it to all")
    options.add_argument("--child", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        child(given.child, given.scratch)
        return 0
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        path = Path(folder) / "rows.npy"
        rows = write(path, given.gigabytes, given.columns)
        figures = compare(path, given.rounds)
        size = path.stat().st_size
    wanted = tell(figures, rows, given.columns, size)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(
        json.dumps({"bytes": size, "figures": figures, "wanted": bars.record(wanted)}, indent=1) + "\n"
    )
    return 0 if given.no_bars else bars.show(wanted)


def compare(path: Path, rounds: int) -> dict[str, Any]:
    """Each way once a round; then retell from the disk."""
    figures: dict[str, Any] = {way: {"seconds": []} for way in WAYS}
    for number in range(rounds):
        for way in WAYS:
            if number and way.startswith("IncrementalPCA"):
                continue  # far from close: once is enough
            answer = run(way, path)
            if "seconds" in answer:
                figures[way]["seconds"].append(answer.pop("seconds"))
            figures[way] |= answer
    forget(path)
    figures["retell"]["disk"] = run("retell", path).get("read")
    return figures


def tell(figures: dict[str, Any], rows: int, columns: int, size: int) -> list[bars.Wanted]:
    """The table, and what is wanted of it."""
    print(f"{rows:,} rows of {columns} columns, {size / 1e9:.2f} GB; linear, K = {K}")
    done = {name: f for name, f in figures.items() if f["seconds"]}
    least = min((f["error"] for name, f in done.items() if name.startswith("product")), default=float("nan"))
    lines = [
        (
            name.replace(" 0", " default"),
            show.both(f["seconds"]),
            size / 1e9 / median(f["seconds"]),
            f["peak_mb"],
            f["error"] / least,
            f"{f['share']:.0%}",
        )
        if name in done
        else (name, f["cannot"])
        for name, f in figures.items()
    ]
    show.table(("", "seconds", "GB/s", "peak MB", "error / PCA", "of the rows"), lines)
    if "retell" not in done:
        return []
    mine = done["retell"]["seconds"]
    limit = min((f["seconds"] for name, f in done.items() if name.startswith("product")), key=median)
    other = min(
        (median(f["seconds"]) for name, f in done.items() if name.startswith("Incremental")), default=float("nan")
    )
    disk = figures["retell"]["disk"]
    return [
        bars.Wanted("streaming: rate / that of the product alone", ratio(limit, mine), 0.7, False),
        bars.Wanted("streaming: IncrementalPCA / retell", other / median(mine), 3, False),
        bars.Wanted("streaming: peak, MB", figures["retell"]["peak_mb"], 500, True),
        bars.Wanted("streaming: bytes from the disk / bytes of the file", disk / size, 1.05, True),
        bars.Wanted("streaming: error / PCA's", figures["retell"]["error"] / least, 1.001, True),
    ]


if __name__ == "__main__":
    sys.exit(main())
