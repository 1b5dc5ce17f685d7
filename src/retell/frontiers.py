"""One autoencoder at many settings, from one reading of the rows: what sparsity costs in error."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product, starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.base import clone

from retell.estimator import Autoencoder
from retell.notice import warn
from retell.report import charts
from retell.seeds import seed_of
from retell.several import Figures, Fit, fit, fit_stream, judge
from retell.store import check_parent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Frontier", "Point", "frontier"]

FIGURES = Figures._fields


class Point(NamedTuple):
    """One setting, and what came of it."""

    settings: dict[str, Any]
    """The parameters that vary."""
    model: Autoencoder | None
    """Fitted; None if the fit failed."""
    l0: float
    """Active units of a row, on average."""
    fvu: float
    """Fraction of variance unexplained, in the scaled space."""
    dead: float
    """Share of the units that no row makes active: of few rows, rare units are silent too."""
    error: str
    """Why there is no model; empty if there is one."""

    @property
    def label(self) -> str:
        """As in target_l0=8."""
        return _label(self.settings)


@dataclass(frozen=True)
class Frontier:
    """Fits of one autoencoder at many settings, in the order asked. Printed, a table.

    Parameters
    ----------
    points : tuple of Point
    judged : str
        Which rows the figures are of.
    """

    points: tuple[Point, ...]
    judged: str

    @property
    def models(self) -> list[Autoencoder | None]:
        """The fitted models; None where a fit failed."""
        return [point.model for point in self.points]

    @property
    def table(self) -> list[dict[str, Any]]:
        """A dict for each setting: its parameters, l0, fvu, dead, error."""
        return [
            {**point.settings, **{name: getattr(point, name) for name in FIGURES}, "error": point.error}
            for point in self.points
        ]

    def __str__(self) -> str:
        wide = max(len(point.label) for point in self.points)
        lines = [f"{'':{wide}}  {'L0':>7}  {'FVU':>7}  {'dead':>6}"]
        for point in self.points:
            figures = f"{point.l0:7.4g}  {point.fvu:7.4f}  {point.dead:6.1%}"
            lines.append(f"{point.label:{wide}}  {point.error or figures}")
        return "\n".join([*lines, f"of {self.judged}"])

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw FVU against L0, both on logarithmic axes; a line for each setting of all parameters but the last.

        Parameters
        ----------
        path : path, optional
            A .png to write.

        Returns
        -------
        matplotlib.figure.Figure
            One that pyplot does not know.

        Raises
        ------
        ImportError
            Without matplotlib: ``pip install 'retell[plot]'``.
        ValueError
            If there is nothing to draw.
        """
        figure = charts.frontier(_lines(self.points), self.judged)
        if path is not None:
            figure.savefig(path)
        return figure

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model of each setting as folder/model-1, model-2 ..., frontier.csv and frontier.png.

        The folder may be there; what an older frontier has left in it is replaced. Without matplotlib there is no
        picture, and a warning says so.
        """
        place = Path(folder)
        check_parent(place)
        place.mkdir(exist_ok=True)
        for old in place.glob("model-*/model.toml"):
            shutil.rmtree(old.parent)
        names = ["" if point.model is None else f"model-{i}" for i, point in enumerate(self.points, 1)]
        for name, point in zip(names, self.points, strict=True):
            if point.model is not None:
                point.model.save(place / name)
        with (place / "frontier.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["model", *self.table[0]])
            writer.writerows([name, *row.values()] for name, row in zip(names, self.table, strict=True))
        try:
            self.plot(place / "frontier.png")
        except (ImportError, ValueError) as error:
            warn(f"there is no {place / 'frontier.png'}: {error}")


def frontier(
    model: Autoencoder, X: Any, *, test: Any = None, n_rows: int | None = None, **settings: Sequence[Any]
) -> Frontier:
    """Fit `model` at many settings, in step: the rows are looked at, read and shuffled once for all.

    Each batch is read once, and each fit takes its step on it before the next one is read. Every fit is, to the bit,
    what ``fit`` (or ``fit_stream``) of the same autoencoder makes of the rows alone. The first look at the rows, their
    scaling, spectrum and the sample for the start are shared where settings ask the same of them; the reading, where
    they also have one `batch_size` and `n_components`: settings that differ in these are fitted in turn, group after
    group. Encoders have weights of their own, so that their products can't be shared: with rows that are quickly
    read, all takes as long as one fit after another. The weights, gradients and moments of all fits of a group are in
    memory at once.

    Parameters
    ----------
    model : Autoencoder
        What the settings have in common; it is not fitted. A `random_state` that is no int is drawn from once, for
        all fits. `max_time` counts the time of all fits that go in step.
    X : array or frame of shape (N, D), path, or iterator of arrays or tensors of shape (n, D)
        As `fit` takes them; an iterator is a stream, as `fit_stream` takes it. Fits of a stream must all go in step.
    test : array or frame of shape (M, D), or path, optional
        Rows to judge by; by default those that each fit has held out, or, without any, evenly spaced ones of the fit.
    n_rows : int, optional
        How many rows of a stream to take, as in `fit_stream`.
    **settings : lists
        Parameters of the autoencoder, each with the values to take; of several lists, all combinations, the last one
        varying fastest.

    Returns
    -------
    Frontier

    Raises
    ------
    TypeError
        If `model` is no Autoencoder.
    ValueError
        If there is nothing to vary, or no setting could be fitted. One that fails beside others costs only itself: a
        warning says why, and so does the table.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from retell import Autoencoder, TopK, frontier
    >>> model = Autoencoder(128, max_iter=5, random_state=0)
    >>> found = frontier(model, load_digits().data, code_activation=[TopK(4), TopK(8)])
    >>> [point.l0 for point in found.points], found.points[0].fvu > found.points[1].fvu
    ([4.0, 8.0], True)
    >>> found.models[1].transform(load_digits().data).shape
    (1797, 128)
    """
    if not isinstance(model, Autoencoder):
        raise TypeError(f"an Autoencoder was expected first, then the rows; got {type(model).__name__}")
    seed, asked = seed_of(model.random_state), _grid(model, settings)
    fits = [Fit(_label(values), clone(model).set_params(**{"random_state": seed, **values})) for values in asked]
    if hasattr(X, "__next__"):
        fit_stream(fits, X, n_rows)
    elif n_rows is None:
        fit(fits, X)
    else:
        raise ValueError("n_rows says how many rows of a stream to take: leave it out, or give an iterator of arrays")
    judged = judge(fits, test)
    for it in fits:
        if it.failure is not None:
            warn(f"{it.label} has failed and is left out: {it.failure}")
    return Frontier(tuple(starmap(_point, zip(asked, fits, strict=True))), judged)


def _point(settings: dict[str, Any], it: Fit) -> Point:
    failed = it.failure is not None
    return Point(settings, None if failed else it.model, *it.figures, str(it.failure) if failed else "")


def _grid(model: Autoencoder, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """All combinations, or a sentence about why there are none."""
    if not settings:
        raise ValueError("nothing varies: give a parameter of the autoencoder a list, as in target_l0=[8, 16, 32]")
    there = model.get_params(deep=False)
    for name, values in settings.items():
        if name not in there:
            raise ValueError(f"{name}=... is no parameter of Autoencoder, whose values could vary")
        if not isinstance(values, list | tuple | range | np.ndarray) or not len(values):
            raise ValueError(f"{name}={values!r} is no list of values, as in {name}=[..., ...]")
    lists = [values.tolist() if isinstance(values, np.ndarray) else values for values in settings.values()]
    return [dict(zip(settings, values, strict=True)) for values in product(*lists)]


def _label(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _lines(points: Sequence[Point]) -> dict[str, list[tuple[float, float, str]]]:
    """L0, FVU and the last setting of each point that has a place on logarithmic axes, by the other settings."""
    lines: dict[str, list[tuple[float, float, str]]] = {}
    for point in points:
        *others, last = point.settings.items()
        if point.l0 > 0 and point.fvu > 0:
            lines.setdefault(_label(dict(others)), []).append((point.l0, point.fvu, _label(dict([last]))))
    return lines
