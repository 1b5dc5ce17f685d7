"""A sparse autoencoder of rows on a disk, larger than the memory it may use: its rate against the rate in memory.

    python benchmarks/disk.py [--quick] [--gigabytes G] [--limit G] [--seconds S] [--rounds N] [--scratch DIR]
                              [--json FILE] [--no-bars]

Writes a folder of float16 .npy shards of 384 columns, sums of 64 directions and noise, which nothing compresses: G
gigabytes of them, four times the limit or more. Autoencoder(3072, hidden_layer_sizes=(),
code_activation="TopK(32)", batch_size=4096), the rest its default, then takes steps in a fresh process, in turn

    disk       from the folder, dropped from the system's memory before the first step
    memory     from an array of its first shards, an eighth of the limit

The rate is of the rows of the steps in S seconds, the first five steps apart. "first step" is what passes between the
start of the fit and the first step: the look at all rows that settles scaling and start, and the filling of the pool.
"from the disk" is read_bytes of /proc/self/io during the steps, over the bytes of their rows. "peak" is resident
anonymous memory (RssAnon of /proc/PID/status), Python and torch included, looked at every 10 ms from outside; a process
on the disk that passes the limit is killed. --quick takes 0.4 GB and says nothing of the limit. The folder is deleted
at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import bars, show
from peers.measures import ratio
from peers.process import ROOT

D, K, BATCH = 384, 3072, 4096
SETTINGS = {"hidden_layer_sizes": (), "code_activation": "TopK(32)", "batch_size": BATCH, "random_state": 0}
SHARD = 2**17  # rows of a file: 100 MB
WARM = 5  # steps before the clock starts


class Enough(Exception):
    """The seconds are over."""


def write(folder: Path, gigabytes: float) -> int:
    """The shards; how many bytes they are."""
    rng = np.random.default_rng(0)
    mix = np.linspace(2, 0.5, 64, dtype=np.float32)[:, None] * (rng.normal(size=(64, D)) / 8).astype(np.float32)
    n_rows, total = int(gigabytes * 1e9 / 2 / D), 0
    room = [np.empty((min(SHARD, n_rows), width), np.float32) for width in (64, D, D)]
    for number, start in enumerate(range(0, n_rows, SHARD)):
        z, rows, noise = (some[: n_rows - start] for some in room)
        np.matmul(rng.standard_normal(out=z, dtype=np.float32), mix, out=rows)
        rows += np.multiply(rng.standard_normal(out=noise, dtype=np.float32), np.float32(0.3), out=noise)
        rows += np.float32(1)
        path = folder / f"part{number}.npy"
        np.save(path, rows.astype(np.float16))
        with path.open("rb") as file:
            os.fsync(file.fileno())
        total += path.stat().st_size
    return total


def child(way: str, folder: Path, part: float, seconds: float) -> None:
    """Steps in this process, until the seconds are over."""
    from retell import Autoencoder
    from retell.solvers.sparse import Sparse

    X: Any = folder if way == "disk" else first_shards(folder, part)
    told = {"rows": 0, "seconds": 0.0}
    step, begun = Sparse.one_step, time.perf_counter()

    def timed(self: Sparse, x: Any, noise: Any, rate: float) -> Any:
        now = time.perf_counter()
        if "first step" not in told:
            told["first step"] = now - begun
            if way == "disk":
                forget(folder)
        if self.step == WARM:
            told["start"], told["read"] = now, -read_bytes()
        if self.step > WARM:
            told["rows"] += last[0]
            told["seconds"] = now - told["start"]
            if told["seconds"] > seconds:
                raise Enough
        last[0] = len(x)
        return step(self, x, noise, rate)

    last = [0]
    Sparse.one_step = timed
    with suppress(Enough):  # rows in memory may come to an end of all epochs before
        Autoencoder(K, **SETTINGS, early_stopping=False).fit(X)
    told["read"] += read_bytes()
    print(json.dumps(told))


def first_shards(folder: Path, most: float) -> np.ndarray:
    """An array of the first shards, so many bytes."""
    n = max(BATCH, int(most / 2 / D))
    rows, done = np.empty((n, D), np.float16), 0
    for number in range(-(-n // SHARD)):
        some = np.load(folder / f"part{number}.npy", mmap_mode="r")[: n - done]
        rows[done : done + len(some)] = some
        done += len(some)
    return rows[:done]


def forget(folder: Path) -> None:
    """Drop the files from the system's memory."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes() -> float:
    """Bytes that came from the disk so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


def run(way: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One way in a process of its own, watched."""
    command = [sys.executable, __file__, "--child", way, "--scratch", str(folder), "--seconds", str(given.seconds)]
    process = subprocess.Popen(
        [*command, "--limit", str(given.limit)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        if way == "disk" and peak > given.limit * 1e9:
            process.kill()
        time.sleep(0.01)
    output, error = process.communicate()
    if process.returncode:
        cannot = "passed the limit" if process.returncode < 0 else (error.strip().splitlines() or ["?"])[-1]
        return {"cannot": cannot, "peak": peak}
    return {**json.loads(output.splitlines()[-1]), "peak": peak}


def anonymous(pid: int) -> float:
    """Resident anonymous memory, in bytes; 0 where the process has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024.0 for line in lines if line.startswith("RssAnon")), 0.0)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--gigabytes", type=float, default=6.2)
    options.add_argument("--limit", type=float, default=1.5, help="gigabytes of anonymous memory")
    options.add_argument("--seconds", type=float, default=12)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--scratch", type=Path, help="folder for the files; a temporary one unless given")
    options.add_argument("--json", type=Path, default=ROOT / ".bench/disk.json")
    options.add_argument("--no-bars", action="store_true")
    options.add_argument("--data", help="not needed: make bench gives it to all")
    options.add_argument("--child", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        child(given.child, given.scratch, given.limit * 1e9 / 8, given.seconds)
        return 0
    if given.quick:
        given.gigabytes, given.seconds, given.rounds = 0.4, min(given.seconds, 5), 1
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        size = write(Path(folder), given.gigabytes)
        found: dict[str, list[dict[str, Any]]] = {"disk": [], "memory": []}
        for _ in range(given.rounds):
            for way, runs in found.items():
                runs.append(run(way, Path(folder), given))
    wanted = tell(found, size, given)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    record = {"bytes": size, "limit": given.limit * 1e9, "runs": found, "wanted": bars.record(wanted)}
    given.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if given.no_bars else bars.show(wanted)


def tell(found: dict[str, list[dict[str, Any]]], size: int, given: argparse.Namespace) -> list[bars.Wanted]:
    """The table, and what is wanted of it."""
    print(f"{size / 1e9:.2f} GB of float16, {D} columns; TopK(32), K = {K:,}, batches of {BATCH:,}")
    lines = []
    for way, runs in found.items():
        for one in runs:
            if "cannot" in one:
                lines.append((way, one["cannot"], "", one["peak"] / 1e6))
                continue
            disk = one["read"] / (one["rows"] * D * 2) if one["rows"] else float("nan")
            lines.append((way, rate(one), one["first step"], one["peak"] / 1e6, f"{disk:.0%}"))
    show.table(("", "rows/s", "first step, s", "peak MB", "from the disk"), lines)
    rates = {way: [1 / rate(one) for one in runs if one.get("rows")] for way, runs in found.items()}
    if not all(rates.values()):
        return []
    peak = max(one["peak"] for one in found["disk"])
    wanted = [bars.Wanted("disk: rate / rate in memory", ratio(rates["memory"], rates["disk"]), 0.9, False)]
    if not given.quick:
        wanted.append(bars.Wanted("disk: bytes of the files / limit", size / given.limit / 1e9, 4, False))
        wanted.append(bars.Wanted("disk: peak of anonymous memory / limit", peak / given.limit / 1e9, 1, True))
    return wanted


def rate(one: dict[str, Any]) -> float:
    """Rows a second."""
    return float(one["rows"] / one["seconds"]) if one["seconds"] else float("nan")


if __name__ == "__main__":
    sys.exit(main())
