"""A fit while it runs: a bar on a terminal, a line every few seconds elsewhere, always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retell.descend import Epoch
    from retell.training import Training

__all__ = ["watch"]

EVERY = 5.0  # seconds between lines where there is no terminal


def watch(training: Training, *, quiet: bool = False) -> None:
    """Run a training to its end and tell how it goes.

    Parameters
    ----------
    training : Training
    quiet : bool, default=False
        Say nothing.
    """
    with closing(training.epochs()) as epochs:  # an interrupt closes it at once: it writes its checkpoint then
        if quiet or training.plan.solver == "exact":
            for _ in epochs:
                pass
        elif sys.stderr.isatty():
            _bar(training, epochs)
        else:
            _lines(training, epochs)


def _lines(training: Training, epochs: Iterator[Epoch]) -> None:
    start = said = time.monotonic()
    yardstick = _yardstick(training)
    for epoch in epochs:
        now = time.monotonic()
        if epoch.number == 1 or epoch.finished or now - said >= EVERY:
            most = training.plan.recipe.max_iter
            print(
                f"epoch {epoch.number}/{most}  {_terms(epoch)}  {_score(epoch)}{yardstick}  {now - start:.0f} s",
                file=sys.stderr,
                flush=True,
            )
            said = now


def _bar(training: Training, epochs: Iterator[Epoch]) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    yardstick = _yardstick(training)
    columns = (
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=None),
        TextColumn("{task.description}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True, transient=True) as progress:
        task = progress.add_task("", total=training.plan.recipe.max_iter)
        for epoch in epochs:
            words = f"{_terms(epoch)}  {_score(epoch)}{yardstick}"
            progress.update(task, completed=epoch.number, description=words)


def _terms(epoch: Epoch) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in epoch.terms.items())


def _score(epoch: Epoch) -> str:
    return "" if epoch.score is None else f"held-out R² {epoch.score:.4f}"


def _yardstick(training: Training) -> str:
    """PCA's R² on the same held-out rows."""
    plan = training.plan
    return f" (PCA {plan.pca_score():.4f})" if len(plan.held_out) else ""
