"""What is to be known of rows before a fit: how large they are, what they share, and what would spoil it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from retell.arrays import as_numpy
from retell.findings import Diagnosis, Finding, percent
from retell.moments import Moments
from retell.recovery import twins
from retell.report.summary import aligned
from retell.rows.arrays import check_kinds, column_labels
from retell.rows.blocks import blocks, spaced
from retell.rows.files import read_rows
from retell.rows.shards import Shards
from retell.scaling import Scaling

__all__ = ["Inspection", "inspect"]

Array = npt.NDArray[Any]

FEWEST, MOST, CELLS = 512, 4096, 2**22  # rows, and cells, that tell of rank and duplicates
MASSIVE = 10.0  # times the median distance from the mean from which a row is massive
HEAVY = 0.05  # share of the squares that massive rows must have to be worth a word
OFF = 10.0  # spreads between mean and origin that are worth a word
ALIKE = 0.9999  # correlation from which two columns are one
HOLED = 0.5  # share of unseen cells that is worth a word


@dataclass(frozen=True)
class Inspection:
    """What was found. Printed, it is text of 80 columns.

    Parameters
    ----------
    n_rows, n_columns : int
    holes : float
        Share of the cells that were not seen.
    norm : float
        The rows' median norm over seen cells, in their own units.
    largest : float
        The largest distance of a row from the mean, over the median of the distances, scaled.
    massive : ndarray of shape (M,)
        Numbers of the rows that are more than 10 medians away.
    mean_to_spread : float
        ||mean|| / ||standard deviation|| of the columns, in their own units.
    effective_rank : float
        exp of the entropy of the shares that principal axes have of the variance, scaled, without massive rows.
    constant, unseen : ndarray
        Numbers of the columns that hold one value, or none.
    duplicates : ndarray of shape (P, 2)
        Columns and the one that each repeats, but for sign, unit and offset.
    scaling : str
        What `scale="auto"` would do with the columns.
    findings : Diagnosis
        What is worth a word, with what to do; empty for healthy rows.

    References
    ----------
    Roy & Vetterli 2007, "The Effective Rank: A Measure of Effective Dimensionality".
    """

    n_rows: int
    n_columns: int
    holes: float
    norm: float
    largest: float
    massive: Array
    mean_to_spread: float
    effective_rank: float
    constant: Array
    unseen: Array
    duplicates: Array
    scaling: str
    findings: Diagnosis

    @property
    def figures(self) -> dict[str, Any]:
        """All but the findings, as numbers, text and lists."""
        known = {name: value for name, value in vars(self).items() if name != "findings"}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in known.items()}

    def __str__(self) -> str:
        lines = {
            "rows": f"{self.n_rows:,} x {self.n_columns:,}, {percent(self.holes)} of the cells unseen",
            "norms": f"median {self.norm:.3g}; the farthest row is {self.largest:.3g} times as far out as most",
            "mean": f"{self.mean_to_spread:.3g} spreads from the origin",
            "rank": f"about {self.effective_rank:.3g} of {self.n_columns:,} directions matter",
            "scaling": self.scaling,
        }
        return f"{aligned(lines)}\n{self.findings}"


def inspect(X: Any) -> Inspection:
    """What is to be known of rows before a fit, in figures and in words, with the remedy.

    It looks for: massive rows, which would decide a fit alone, rows far from the origin, constant, unseen and
    duplicate columns, many holes.

    Parameters
    ----------
    X : array, tensor or frame of shape (N, D), or path
        As in `Autoencoder.fit`; NaN is an unseen cell. Read twice, in blocks, in constant memory; rank and duplicates
        are told by some thousand evenly spaced rows.

    Returns
    -------
    Inspection

    Raises
    ------
    ValueError
        For rows that are not finite numbers (NaN apart), or a single one.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from retell import inspect
    >>> print(inspect(load_wine().data))
    rows     178 x 13, 0 % of the cells unseen
    norms    median 680; the farthest row is 1.81 times as far out as most
    mean     2.4 spreads from the origin
    rank     about 7.39 of 13 directions matter
    scaling  each column by its own spread: they differ 2.53e+03 times
    healthy: nothing found
    """
    reader = BaseEstimator()
    X = as_numpy(read_rows(X) if isinstance(X, str | os.PathLike) else X)
    check_kinds(X)
    rows: Any = validate_data(
        reader,
        X,
        dtype=(np.float64, np.float32),
        order="C",
        ensure_all_finite=False,
        ensure_min_samples=1,
        skip_check_array=isinstance(X, Shards),
    )
    if len(rows) < 2:
        raise ValueError("an inspection compares rows: 2 or more were expected, got 1")
    names = getattr(reader, "feature_names_in_", None)
    sample = spaced(np.arange(len(rows)), min(MOST, max(FEWEST, CELLS // rows.shape[1])))
    found = Moments.of(rows, sample, names, covariance=False, extent=False)
    scaling = Scaling.of(found.mean, found.spread, "auto")
    far, norms, count = _sizes(rows, scaling)
    middle = float(np.median(far))
    massive = np.flatnonzero(far > MASSIVE * middle)
    x = np.nan_to_num(scaling.to(found.kept[~np.isin(sample, massive)]))
    unseen, constant = np.flatnonzero(count == 0), np.flatnonzero((found.spread == 0) & (count > 0))
    known = Inspection(
        n_rows=len(rows),
        n_columns=rows.shape[1],
        holes=float(1 - count.sum() / rows.size),
        norm=float(np.median(norms)),
        largest=float(far.max() / middle) if middle else 1.0,
        massive=massive,
        mean_to_spread=_ratio(found.mean, found.spread),
        effective_rank=_effective_rank(x),
        constant=constant,
        unseen=unseen,
        duplicates=_duplicates(x),
        scaling=_said(scaling, found.spread),
        findings=Diagnosis(()),
    )
    heavy = float((far[massive] ** 2).sum() / max((far**2).sum(), np.finfo(float).tiny))
    return Inspection(**{**vars(known), "findings": Diagnosis(tuple(_findings(known, heavy, names)))})


def _sizes(rows: Array, scaling: Scaling) -> tuple[Array, Array, Array]:
    """The rows' distances from the mean, scaled and a cell, their norms (N,), and how often columns (D,) were seen."""
    far, norms, count = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(rows.shape[1], np.int64)
    for i, block in blocks(rows):
        seen = ~np.isnan(block)
        own, x = (np.where(seen, some, 0.0) for some in (block, scaling.to(block)))
        some = slice(i, i + len(block))
        far[some] = np.sqrt((x**2).sum(1) / np.maximum(seen.sum(1), 1))
        top = np.maximum(np.abs(own).max(1, keepdims=True), np.finfo(own.dtype).tiny)  # squares may not overflow
        norms[some] = np.linalg.norm(own / top, axis=1) * top[:, 0]
        count += seen.sum(0)
    return far, norms, count


def _ratio(mean: Array, spread: Array) -> float:
    unit = max(float(np.abs(mean).max()), float(spread.max()), np.finfo(float).tiny)  # squares may not overflow
    whole = float(np.linalg.norm(spread / unit))
    return float(np.linalg.norm(mean / unit)) / whole if whole else 0.0


def _effective_rank(x: Array) -> float:
    """Of rows (N, D)."""
    off = x - x.mean(0)
    values = np.maximum(np.linalg.eigvalsh(off.T @ off if off.shape[1] <= len(off) else off @ off.T), 0)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def _duplicates(x: Array) -> Array:
    """Columns and the first one that each repeats (P, 2)."""
    off = x - x.mean(0)
    off[:, np.abs(off).max(0) <= 1e-12 * np.abs(x).max(initial=1)] = 0  # what rounding leaves of a constant
    partner = twins(off.T, ALIKE, signed=True)
    later = np.flatnonzero((partner >= 0) & (partner < np.arange(len(partner))))
    return np.stack([later, partner[later]], 1)


def _said(scaling: Scaling, spread: Array) -> str:
    """What "auto" does."""
    varied = spread[spread > 0]
    if not len(varied):
        return "nothing to scale: no column varies"
    times = f"they differ {varied.max() / varied.min():.3g} times"
    if (scaling.factor == scaling.factor[0]).all():
        return f"one factor for all columns, whose spreads are alike: {times}"
    return f"each column by its own spread: {times}"


def _findings(known: Inspection, heavy: float, names: Any) -> Iterator[Finding]:
    """What is worth a word; heavy is the share of all squares that massive rows have."""
    n, D = known.n_rows, known.n_columns
    if heavy > HEAVY:
        yield Finding(
            "massive rows",
            {"rows": float(len(known.massive)), "share": heavy, "largest": known.largest},
            f"{len(known.massive):,} of the {n:,} rows are more than {MASSIVE:g} times as far from the mean as most,"
            f" up to {known.largest:.3g} times, and make up {percent(heavy)} of all squares: they would make"
            " the fit",
            f"leave them out (max_norm={MASSIVE:g}), or take a loss that large errors do not rule (Huber())",
        )
    if known.mean_to_spread > OFF:
        yield Finding(
            "off centre",
            {"mean to spread": known.mean_to_spread},
            f"the mean is {known.mean_to_spread:.3g} times as long as the spread about it: where rows are not centred,"
            " units learn what all rows share, and many die",
            "keep the default scale, which subtracts the means; float64 where they are 1e5 times the spread",
        )
    for kind, columns, words, remedy in (
        ("constant", known.constant, "hold one value", "leave them out: they tell no row from another"),
        ("unseen", known.unseen, "hold none", "leave them out: nothing is known of them"),
        ("duplicate", known.duplicates[:, 0], "repeat another", "leave them out: what is there twice counts twice"),
    ):
        if len(columns):
            said = f"{len(columns):,} of the {D:,} columns {words} ({column_labels(columns, names)})"
            yield Finding(f"{kind} columns", {"columns": float(len(columns))}, said, remedy)
    if known.holes > HOLED:
        said = f"{percent(known.holes)} of the cells were not seen"
        remedy = "leave out columns of which little is seen; corruption='Mask(0.3)' teaches a net to do without cells"
        yield Finding("many holes", {"share": known.holes}, said, remedy)
