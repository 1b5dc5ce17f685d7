"""x"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers.dictionaries import frontier
from peers.dictionaries.store import Store
from peers.measures import Crew, Row
from peers.process import ROOT
LABELS = ("retell", "retell, defaults", "saelens", "dictionary_learning", "sparsify", "overcomplete")
def main():
    options = argparse.ArgumentParser()
    options.add_argument("--data", type=Path)
    options.add_argument("--peers")
    options.add_argument("--codes", default="TopK,BatchTopK,L1,JumpReLU")
    options.add_argument("--seeds", type=int, default=1)
    given = options.parse_args()
    labels = [l for l in LABELS if l.split(",")[0] in given.peers.split(",")]
    crew = Crew([Row(l, l.split(",")[0], {}) for l in labels], given.data, venv="sparse", worker="peers.dictionaries.worker")
    store = Store(ROOT / ".bench/sparse-results.jsonl")
    codes = given.codes.split(",")
    frontier.run(crew, store, list(frontier.first(crew, labels, codes)))
    frontier.run(crew, store, list(frontier.further(crew, labels, codes, store, given.seeds)))
    crew.end()
main()
