"""What files of tests share; and the tables that they record with `record_property`, printed once at the end,
whatever process ran the test."""

import subprocess
import sys
from collections import Counter
from statistics import median
from textwrap import indent

import pytest
import torch


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


SCRIPT = """
import sys, threading
import numpy as np
from retell import Autoencoder

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024

{before}
before, peak, done = anonymous(), [0.0], threading.Event()

def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
try:
{work}
finally:
    done.set()
    watcher.join()
print(peak[0] - before)
"""


@pytest.fixture(scope="session")
def peak_of():
    """peak_of(before, work, *arguments): the most anonymous memory, in MB, that `work` adds to a process of its own."""

    def peak(before, work, *arguments):
        lines = SCRIPT.format(before=before.strip(), work=indent(work.strip(), "    "))
        asked = [sys.executable, "-c", lines, *map(str, arguments)]
        return float(subprocess.run(asked, capture_output=True, text=True, timeout=120, check=True).stdout)

    return peak


def pytest_terminal_summary(terminalreporter):
    recorded = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            recorded.setdefault(name, []).append(value)
    if "combinations" in recorded:
        terminalreporter.section("combinations: trained/refused")
        write_counts(terminalreporter, recorded["combinations"])
        write_sentences(terminalreporter, recorded.get("refusals", []))
    if "falls" in recorded:
        write_falls(terminalreporter, recorded["falls"])


def write_counts(out, cells):
    """Penalties down, activations across.

    Parameters
    ----------
    out : TerminalReporter
    cells : list of (penalty, activation, "trained" or "refused", count)
    """
    count = Counter()
    for penalty, activation, verdict, number in cells:
        for row in (penalty, "all"):
            for column in (activation, "all"):
                count[row, column, verdict] += number
    rows, columns = ([*sorted({cell[i] for cell in cells}), "all"] for i in (0, 1))
    out.write_line(f"{'':<12}" + "".join(f"{column:>11}" for column in columns))
    for row in rows:
        told = [f"{count[row, column, 'trained']}/{count[row, column, 'refused']}" for column in columns]
        out.write_line(f"{row:<12}" + "".join(f"{word:>11}" for word in told))


def write_sentences(out, refusals):
    """What the refused were told: (sentence, count), the commonest first."""
    count = Counter()
    for sentence, number in refusals:
        count[sentence] += number
    out.write_line("")
    for sentence, number in sorted(count.items(), key=lambda item: (-item[1], item[0])):
        out.write_line(f"{number:>6}  {sentence}")
    out.write_line("        (L, σ, Ω, C, Π: the combination's loss, activation, penalty, corruption, constraint)")


def write_falls(out, falls):
    """By how much the fits lowered their objectives: (in standard errors of the rows' falls, as a share)."""
    errors, shares = zip(*falls, strict=True)
    out.write_line(
        f"{len(falls)} fits of combinations drawn at random: the objective falls by {min(errors):.1f} to"
        f" {max(errors):.1f} standard errors, median {median(errors):.1f};"
        f" by {min(shares):.0%} to {max(shares):.0%} of its first value, median {median(shares):.0%}"
    )
