"""What went wrong with a fit, in words, and what to do about it.

Each finding is one function of the evidence: a fitted model, some rows and what the model makes of them. All
figures are of the scaled space. Those about units are in `units.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from retell import units
from retell.evidence import Evidence, gather
from retell.findings import Diagnosis, Finding, percent
from retell.losses import MSE
from retell.metrics import explained_variance
from retell.rows.blocks import spaced

if TYPE_CHECKING:
    from retell.estimator import Autoencoder

__all__ = ["FEWEST", "Diagnosis", "Finding", "diagnose", "examine"]

Array = npt.NDArray[Any]

LOOKED = 2000  # rows of shards that are enough to tell
FEWEST = 20  # rows without which nothing can be told
COPIED = 0.95  # share of the variance of noise above which a model copies what it is given
GAP = 0.02  # of unexplained variance between rows and training rows that is worth a word
CLEARLY = 0.01  # difference of explained variance that is not chance
UNEVEN = 100.0  # ratio of spreads from which the widest column alone makes the squared error
FAR, WIDE = 3.0, 5.0  # training spreads by which a mean may move, a spread may grow or shrink


def diagnose(model: Autoencoder, X: Any) -> Diagnosis:
    """What is wrong with a fitted model, in words, with the remedy.

    It looks for: the identity, a fit worse than PCA, "sparse" codes that are only small, dead, dense,
    duplicate and saturated units, unscaled columns, rows unlike those of the fit, too much capacity, collapsed
    variational units. Each is a function of this module or of `units` that says how it is told.

    Parameters
    ----------
    model : Autoencoder
        Fitted.
    X : array or frame of shape (N, D)
        Rows that it was not fitted to, if there are any: only they show too much capacity. At least 20; of a folder
        of rows, or of float16, 2,000 are looked at, evenly spaced.

    Returns
    -------
    Diagnosis
        False if nothing was found; its findings have a name, figures, words and a remedy.

    Raises
    ------
    ValueError
        For fewer than 20 rows, or rows that the model can't read.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from retell import Autoencoder, diagnose
    >>> X = load_wine().data
    >>> print(diagnose(Autoencoder(4, hidden_layer_sizes=()).fit(X), X))
    healthy: nothing found
    >>> print(diagnose(Autoencoder(4, hidden_layer_sizes=(), scale=None).fit(X), X))
    unscaled columns: the widest column has 2.53e+03 times the spread of the
      narrowest: the fit is about the widest alone. Remedy: scale='auto' or
      'standard'
    """
    check_is_fitted(model)
    rows, check = model._checked(X)
    if not isinstance(rows, np.ndarray):
        rows = rows.take(spaced(np.arange(len(rows)), LOOKED))
    check(rows, 0)
    if len(rows) < FEWEST:
        raise ValueError(f"a diagnosis needs at least {FEWEST} rows, got {len(rows)}")
    return examine(model, model.scaling_.to(rows))


def examine(model: Autoencoder, x: Array) -> Diagnosis:
    """As `diagnose`, of rows (N, D) that are scaled already."""
    evidence = gather(model, x)
    found = [look(evidence) for look in _LOOKS]
    return Diagnosis(tuple(finding for finding in found if finding is not None))


def _identity(e: Evidence) -> Finding | None:
    """K >= D, and noise (Normal, the columns' means and spreads) and shuffled columns are explained above 95 %."""
    D, K = e.x.shape[1], e.h.shape[1]
    if K < D:
        return None
    draw = np.random.default_rng(0)
    low, high = e.model.objective_.loss.support
    mean, spread = _moments(e.x)
    strangers = {
        "noise": np.clip(draw.normal(mean, spread, e.x.shape), low, high),
        "shuffled": draw.permuted(e.x, axis=0),
    }
    figures = {name: explained_variance(x, e.model._reconstruct(x)) for name, x in strangers.items()}
    if min(figures.values()) <= COPIED:
        return None
    held = " and ".join(map(repr, e.penalties))
    stronger = f"a larger coefficient for {held}" if held else "add a penalty ('MSE() + 0.001 * L1()')"
    return Finding(
        "identity",
        {"rows": 1 - e.error} | figures,
        f"the {K:,} units for {D:,} columns copy whatever they are given: they explain {percent(1 - e.error)} of the"
        f" rows, {percent(figures['noise'])} of noise and {percent(figures['shuffled'])} of the rows with every"
        " column shuffled",
        f"lower n_components, or {stronger}, a corruption ('Mask(0.3)') or a sparse code ('TopK(8)')",
    )


def _worse_than_pca(e: Evidence) -> Finding | None:
    """K < D, and the fit's R² is more than 0.01 below that of PCA with as many units on the same rows."""
    score, pca = e.fitted.score, e.fitted.pca_score
    if e.h.shape[1] >= e.x.shape[1] or not score < pca - CLEARLY:  # NaN where they are not known
        return None
    loss = e.model.objective_.loss
    priced = [repr(loss)] * (not isinstance(loss, MSE)) + [repr(term) for term in e.penalties]
    priced += [repr(e.squash)] * e.squash.sparse
    price = f"this can be the price of {' and '.join(priced)}; else " if priced else ""
    return Finding(
        "worse than PCA",
        {"score": score, "pca_score": pca},
        f"the fit explains {percent(score)} of the variance, PCA with as many units {percent(pca)}",
        f"{price}start at PCA (start='auto', linear_path=True), fit longer (max_iter) or with a smaller"
        " learning_rate_init",
    )


def _unscaled(e: Evidence) -> Finding | None:
    """scale=None, and the columns' spreads differ by more than 100 times.

    Columns that hold one value in nine rows of ten (pixels at the border) do not count.
    """
    if e.model._model.settings.scale is not None or np.isfinite(e.model.objective_.loss.support).any():
        return None
    filled = np.where(np.isnan(e.x), e.model.scaling_.centre, e.x)
    low, high = np.quantile(filled, (0.05, 0.95), axis=0)
    spread = filled.std(0)[high > low]
    ratio = float(spread.max() / spread.min()) if len(spread) else 1.0
    if ratio <= UNEVEN:
        return None
    return Finding(
        "unscaled columns",
        {"ratio": ratio},
        f"the widest column has {ratio:.3g} times the spread of the narrowest: the fit is about the widest alone",
        "scale='auto' or 'standard'",
    )


def _unlike(e: Evidence) -> Finding | None:
    """A column's mean is more than 3 training spreads off, or its spread 5 times as large; or most are a fifth.

    A column's training spread counts as at least a tenth of the root mean square of all; only those that reach
    that, and vary, can have become narrow.
    """
    factors = e.model._factors
    variance = (factors.loadings**2).sum(1) + factors.noise
    unit = np.sqrt(np.maximum(variance, 0.01 * variance.mean()))
    mean, spread = _moments(e.x - e.model.scaling_.centre)
    off, widest = float((np.abs(mean) / unit).max()), float((spread / unit).max())
    shares = (spread / unit)[(variance >= 0.01 * variance.mean()) & (spread > 0)]
    usual = float(np.median(shares)) if len(shares) else 1.0
    if off <= FAR and widest <= WIDE and usual >= 1 / WIDE:
        return None
    return Finding(
        "unlike rows",
        {"mean": off, "spread": usual, "largest spread": widest},
        f"the rows are not like those of the fit: a column's mean is up to {off:.3g} spreads away, a column's spread"
        f" {usual:.3g} (median) to {widest:.3g} times that of the fit",
        "give the rows in the units of the fit, or fit again to rows like these",
    )


def _capacity(e: Evidence) -> Finding | None:
    """The error on the rows, 1 - R², is more than twice that on the training rows and more than 0.02 above it.

    A flexible net fits its training rows better than others, and need not be worse for it: where held-out rows
    chose the epoch, the error must also be above that of PCA with as many units. Rows unlike those of the fit tell
    nothing of it.
    """
    fitted, trained = e.fitted, 1 - e.fitted.train_score
    if not e.error > max(2 * trained, trained + GAP) or _unlike(e) is not None:  # NaN where it is not known
        return None
    if e.model._model.settings.early_stopping and e.error <= 1 - fitted.pca_score + CLEARLY:
        return None
    return Finding(
        "too much capacity",
        {"error": e.error, "training error": trained},
        f"{percent(e.error)} of the variance of these rows is left unexplained, of the training rows"
        f" {percent(trained)}: the fit has learned its rows by heart",
        "narrower hidden layers, fewer units, early_stopping=True, linear_path=True, a penalty, a corruption, or more"
        " rows",
    )


_LOOKS: tuple[Callable[[Evidence], Finding | None], ...] = (
    _identity, _worse_than_pca, *units.LOOKS, _unscaled, _unlike, _capacity,
)  # fmt: skip


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation (D,) of the seen cells; 0 where there are none."""
    seen = ~np.isnan(x)
    count = np.maximum(seen.sum(0), 1)
    mean = np.where(seen, x, 0.0).sum(0) / count
    return mean, np.sqrt((np.where(seen, x - mean, 0.0) ** 2).sum(0) / count)
