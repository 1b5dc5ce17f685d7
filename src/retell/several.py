"""Several autoencoders fitted to the same rows, which are read once for all; what fails for one leaves the others."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from retell.estimator import Autoencoder, first_rows
from retell.known import Known
from retell.lockstep import Course, company, courses_of, in_step, streams_of
from retell.metrics import Explained
from retell.plan import Parts
from retell.rows.blocks import blocks, rows_a_block, take
from retell.settings import Settings
from retell.training import Training

__all__ = ["Figures", "Fit", "fit", "fit_stream", "judge"]

Array = npt.NDArray[Any]

EVERY = 5.0  # seconds between lines, but for the last one of a fit


class Figures(NamedTuple):
    """What a model makes of rows."""

    l0: float
    """Active units of a row, on average."""
    fvu: float
    """Fraction of variance unexplained, in the scaled space."""
    dead: float
    """Share of the units that no row makes active."""


class Fit:
    """One of the autoencoders on its way.

    Parameters
    ----------
    label : str
        What it is called in messages.
    model : Autoencoder

    Attributes
    ----------
    failure : Exception or None
        Why there is no fit.
    figures : Figures
        NaN until it has been judged.
    """

    def __init__(self, label: str, model: Autoencoder) -> None:
        self.label, self.model = label, model
        self.failure: Exception | None = None
        self.figures = Figures(np.nan, np.nan, np.nan)
        self.judges: tuple[Any, Array, str] | None = None  # rows, the numbers of those that judge, what they are

    def attempt(self, work: Callable[[], Any]) -> Any:
        """What comes of work that may fail for this one alone; None if it has."""
        try:
            return work()
        except Exception as error:
            self.failure = error.with_traceback(None)  # which would hold the memory of the fit
            return None

    def course(self, training: Training, course: Course, names: Any) -> Course:
        """The course of the training, and at its end the model."""
        yield from course
        self.model._take(training, names)
        plan = training.plan
        numbers = plan.held_out if len(plan.held_out) else plan.survey.judged
        what = "rows held out" if len(plan.held_out) else "rows of the fit"
        self.judges = plan.survey.rows, numbers, f"{len(numbers):,} {what}"


Ready = list[tuple[Fit, Settings, Parts]]
Groups = list[list[tuple[Fit, Training]]]


def fit(fits: Sequence[Fit], X: Any) -> None:
    """Fit all to rows (N, D) that can be read again, as `Autoencoder.fit` takes them.

    Raises
    ------
    Exception
        If all have failed: what the first one has failed by.
    """
    ready, known = _ready(fits), Known()
    # where rows are left out all are looked at first, and never again
    looks = next((parts for _, settings, parts in ready if settings.max_norm is not None), None)
    rows, names = ready[0][0].model._named_rows(X, reset=True, parts=looks)
    for group in _planned(ready, rows, names, known, whole=True):
        _carry_out(group, courses_of([training for _, training in group]), names)
    _check(fits)


def fit_stream(fits: Sequence[Fit], batches: Iterator[Any], n_rows: int | None) -> None:
    """Fit all to batches of rows (n, D) that come once, as `Autoencoder.fit_stream` takes them.

    Raises
    ------
    Exception
        As in `fit`.
    """
    ready, known = _ready(fits), Known()
    rows, names, coming, n_rows = first_rows(batches, n_rows, ready[0][2].objective.loss)
    group, *others = _planned(ready, rows, names, known, whole=False)
    for other, _ in chain(*others):
        other.failure = ValueError(
            f"it can't go in step with {group[0][0].label}, and a stream comes once: give all settings one batch_size,"
            " n_components and random_state"
        )
    others.clear()
    courses = streams_of([training for _, training in group], coming, n_rows)
    del rows
    known.forget()  # the first rows are in the pool now
    _carry_out(group, courses, names)
    _check(fits)


def judge(fits: Sequence[Fit], test: Any = None) -> str:
    """Measure those that are fitted, on rows (M, D) or, without any, on those that judged each; which rows these are.

    Rows are read once for all that are judged by the same.
    """
    fitted = [it for it in fits if it.judges is not None]
    if test is not None:
        rows, check = fitted[0].model._checked(test)
        _measure(fitted, rows, np.arange(len(rows)), check)
        return f"{len(rows):,} rows given"
    parties: dict[Hashable, list[Fit]] = {}
    for it in fitted:
        assert it.judges is not None
        parties.setdefault((id(it.judges[0]), id(it.judges[1])), []).append(it)
    for party in parties.values():
        assert party[0].judges is not None
        _measure(party, *party[0].judges[:2])
    assert fitted[0].judges is not None
    return fitted[0].judges[2]


def _ready(fits: Sequence[Fit]) -> Ready:
    """Those whose settings are possible, with them."""
    found = [(it, it.attempt(it.model._settings)) for it in fits]
    _check(fits)
    return [(it, *settings) for it, settings in found if settings is not None]


def _check(fits: Sequence[Fit]) -> None:
    """Raise what the first one has failed by, if all have."""
    failures = [it.failure for it in fits if it.failure is not None]
    if len(failures) == len(fits):
        raise failures[0]


def _planned(ready: Ready, rows: Any, names: Any, known: Known, *, whole: bool) -> Groups:
    """The fits before their first epoch, those together that can take the rows in step."""
    groups: dict[Hashable, list[tuple[Fit, Training]]] = {}
    for it, settings, parts in ready:

        def begin(it: Fit = it, settings: Settings = settings, parts: Parts = parts) -> Training:
            return it.model._begin(settings, parts, rows, None, names, whole=whole, known=known)

        training = it.attempt(begin)
        if training is not None:
            groups.setdefault(company(training), []).append((it, training))
    _check([it for it, _, _ in ready])
    return list(groups.values())


def _carry_out(group: list[tuple[Fit, Training]], courses: Sequence[Course], names: Any) -> None:
    """Run the courses of a group to their ends; each lets its memory go at its own."""
    fits = [it for it, _ in group]
    whole = [it.course(training, course, names) for (it, training), course in zip(group, courses, strict=True)]
    group.clear()
    told = time.monotonic()
    for i, said in in_step(whole):
        if isinstance(said, Exception):
            fits[i].failure = said
        elif fits[i].model.verbose and (said.finished or time.monotonic() - told >= EVERY):
            print(f"{fits[i].label}: epoch {said.number}, {said.loss:.4g}", file=sys.stderr)
            told = time.monotonic()


def _measure(fits: Sequence[Fit], rows: Any, numbers: Array, check: Callable[[Array, int], None] | None = None) -> None:
    """Settle the figures of all, from one reading of the rows with these numbers."""
    tallies = [_Tally(it.model) for it in fits]
    widest = max(rows.shape[1], *(it.model.n_components_ for it in fits))
    for first, block in _blocks(rows, numbers, rows_a_block(widest)):
        if check is not None:
            check(block, first)
        for tally in tallies:
            tally.add(block)
    for it, tally in zip(fits, tallies, strict=True):
        it.figures = tally.figures


def _blocks(rows: Any, numbers: Array, size: int) -> Iterable[tuple[int, Array]]:
    if len(numbers) == len(rows):
        return blocks(rows, size)
    return ((i, take(rows, numbers[i : i + size])) for i in range(0, len(numbers), size))


class _Tally:
    """Figures of a model, of rows that come in blocks."""

    def __init__(self, model: Autoencoder) -> None:
        self.model, self.explained = model, Explained(model.scaling_.centre)
        self.active, self.n_rows = np.zeros(model.n_components_, int), 0

    def add(self, rows: Array) -> None:
        """Rows (n, D) in their own units."""
        x, reader = self.model.scaling_.to(rows), self.model._reader
        h = reader.encode(x, self.model.inference)
        self.explained.add(x, reader.decode(h))
        self.active += np.count_nonzero(h, axis=0)
        self.n_rows += len(rows)

    @property
    def figures(self) -> Figures:
        l0, dead = self.active.sum() / self.n_rows, (self.active == 0).mean()
        return Figures(float(l0), 1 - self.explained.score, float(dead))
