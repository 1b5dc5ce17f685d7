"""retell's sparse dictionaries beside the libraries that train them: steps, memory, FVU against L0, dials, seeds.

    make bench DATA=DIR       installs the libraries into .bench/sparse, then runs this and the other benchmarks
    python benchmarks/sparse.py --data DIR [--only steps,l1,memory,frontier,dials,stability] [--peers a,b,...]
                                [--codes a,b,...] [--widths a,b] [--rounds N] [--seeds N] [--store FILE] [--json FILE]
                                [--recorded FILE] [--no-fits] [--no-bars]

Every library runs in a process of its own that waits, blocked, for its turn. Rows are the 60,000 of
minilm_tokens_train.npy, and FVU, the share of variance left unexplained, is of minilm_tokens_test.npy: 384 columns,
multiplied for the peers so that the training rows' mean norm is √384; retell takes them as they are.

"steps" and "l1": batches of 4,096 rows that are in memory; in each round each library takes steps for about 0.7 s, and
ratios are medians over the rounds of ratios within a round. "product" is the encoder's matrix product alone, float32.
A peer is timed in the faster of float32 and mixed bfloat16, its own or torch's; what the latter does to its FVU is in
the frontier. L1 and JumpReLU codes are dense at first and are timed after 30 steps. "memory" is of fresh processes.

"frontier": K = 3072, seven epochs in batches of 4,000, which are 105 steps; every k or penalty of a ladder, peers at
each rate of 1e-3, 3e-3, 1e-2 with the first seed and at the best with the others, in mixed bfloat16 where the processor
multiplies in it and in float32 elsewhere. Rates rise over the first 5 % of the steps and fall over the last 20 %. FVU
at an L0 lies log-log between the fits, by the L0 of the test rows. "dead" is silent on all 60,000 rows. What is done is
kept, a line each, in --store and not done again until a library's version or retell's sources change; so this may be
interrupted at any time. Fits of other libraries take hours: those that are done are in --recorded, which comes with
this script; with --recorded none all are done. --no-fits shows what is there. The second table asks what a peer's FVU
is when retell has done its seven epochs, both by the seconds of "steps" (the last that --json holds); a peer's schedule
may then be one of a single epoch.

"dials": L0 of 8, 32, 128 and FVU of 0.3, 0.2 asked for, with what the test rows have. "stability": the decoders of
the frontier's fits with 32 active units, between seeds, rows matched one to one.

Ends with what is wanted of retell, each met or not, and with 1 if one is not.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import show as common
from peers.bars import record
from peers.bars import show as show_bars
from peers.dictionaries import bars, frontier, measures, show
from peers.dictionaries.store import Store
from peers.measures import Crew, Figures, Row
from peers.process import ROOT

LABELS = "retell", "retell, defaults", "saelens", "dictionary_learning", "sparsify", "overcomplete"
PEERS = "retell", "saelens", "dictionary_learning", "sparsify", "overcomplete", "plain", "products"
PARTS = "steps", "l1", "memory", "frontier", "dials", "stability"
MEMORY = "TopK(32), K = 12288"
RECORDED = ROOT / "benchmarks/peers/dictionaries/fits.jsonl"


def measure(crew: Crew, given: argparse.Namespace, store: Store, figures: Figures) -> None:
    """All figures, printed as they come."""
    labels = [label for label in LABELS if label.split(",")[0] in crew.peers and not crew[label.split(",")[0]].cannot]
    for cell, (code, K) in measures.CELLS.items():
        if ("l1" if code == "L1" else "steps") in given.only and code in given.codes and str(K) in given.widths:
            figures[cell] = measures.steps(crew, cell, given.rounds)
            show.steps(cell, figures[cell])
    if "memory" in given.only:
        figures["memory"] = measures.peaks(crew, MEMORY)
        show.peaks(MEMORY, figures["memory"])
    if "frontier" in given.only:
        if not given.no_fits:
            frontier.run(crew, store, list(frontier.first(crew, labels, given.codes)))
            frontier.run(crew, store, list(frontier.further(crew, labels, given.codes, store, given.seeds)))
        figures["frontier"] = measures.levels(crew, store, labels, given.seeds)
        figures["in time"] = measures.in_time(crew, store, labels, figures)
        show.levels(figures["frontier"])
        show.in_time(figures["in time"])
    if "dials" in given.only and "retell" in crew.peers:
        figures["dials"] = measures.dials(crew, given.seeds)
        show.dials(figures["dials"])
    if "stability" in given.only:
        figures["stability"] = measures.stability(crew, store, labels, given.seeds)
        show.stability(figures["stability"])


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    several = {"type": lambda text: text.split(",")}
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--only", default=list(PARTS), **several)
    options.add_argument("--peers", default=list(PEERS), **several)
    options.add_argument("--codes", default=list(frontier.CODES), help="of steps and frontier", **several)
    options.add_argument("--widths", default=["3072", "12288"], help="of steps", **several)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--store", type=Path, default=ROOT / ".bench/sparse-results.jsonl")
    options.add_argument(
        "--recorded", type=Path, default=RECORDED, help="fits that need not be done again, if it is there"
    )
    options.add_argument("--json", type=Path, default=ROOT / ".bench/sparse.json")
    options.add_argument("--no-fits", action="store_true", help="show the frontier of the fits that are done")
    options.add_argument("--no-bars", action="store_true")
    given = options.parse_args()
    known = {*PARTS, *PEERS, *frontier.CODES}
    if unknown := {*given.only, *given.peers, *given.codes} - known:
        options.error(f"there is no {', '.join(sorted(unknown))}; parts are {', '.join(PARTS)}")
    rows = [Row(peer, peer, {}) for peer in PEERS if peer in given.peers]
    crew = Crew(rows, given.data.resolve(), venv="sparse", worker="peers.dictionaries.worker")
    figures: Figures = json.loads(given.json.read_text())["figures"] if given.json.exists() else {}
    try:
        head = common.header(crew, given.rounds)
        measure(crew, given, Store(given.store, given.recorded), figures)
    finally:
        crew.end()
    wanted = bars.judge(figures)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps({"header": head, "figures": figures, "wanted": record(wanted)}, indent=1) + "\n")
    return 0 if given.no_bars else show_bars(wanted)


if __name__ == "__main__":
    sys.exit(main())
