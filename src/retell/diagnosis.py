"""What went wrong with a fit, in words, and what to do about it.

Each finding is one function of the evidence: a fitted model, some rows and what the model makes of them. All
figures are of the scaled space.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_is_fitted

from retell import auto
from retell.activations import ReLU, Sample
from retell.densities import Exponential, Laplace
from retell.losses import MSE
from retell.metrics import explained_variance
from retell.penalties import KL, L1, Prior, StudentT, ToNormal

if TYPE_CHECKING:
    from retell.estimator import Autoencoder

__all__ = ["FEWEST", "Diagnosis", "Finding", "diagnose", "examine"]

Array = npt.NDArray[Any]

FEWEST = 20  # rows without which nothing can be told
COPIED = 0.95  # share of the variance of noise above which a model copies what it is given
GAP = 0.02  # of unexplained variance between rows and training rows that is worth a word
CLEARLY = 0.01  # difference of explained variance that is not chance
MANY = 0.05  # share of the units above which they are worth a word
ALIKE = 0.99  # cosine or correlation from which two units are one
OFTEN = 10  # rows in which a unit must be active before its correlations mean anything
UNITS = 1024  # units that are compared with all others at a time
UNEVEN = 100.0  # ratio of spreads from which the widest column alone makes the squared error
FAR, WIDE = 3.0, 5.0  # training spreads by which a mean may move, a spread may grow or shrink
FAINT = 0.01  # nats: a unit whose divergence is less tells nothing


class Finding(NamedTuple):
    """One thing that is wrong.

    Parameters
    ----------
    name : str
    figures : dict of str to float
        What was measured.
    words : str
        What it means.
    remedy : str
        What to do.
    """

    name: str
    figures: dict[str, float]
    words: str
    remedy: str

    def __str__(self) -> str:
        text = f"{self.name}: {self.words}. Remedy: {self.remedy}"
        return textwrap.fill(text, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


@dataclass(frozen=True)
class Diagnosis:
    """All that was found; empty, and so false, for a healthy model. Printed, it is text of 80 columns.

    Parameters
    ----------
    findings : tuple of Finding
    """

    findings: tuple[Finding, ...]

    @property
    def names(self) -> list[str]:
        """What was found."""
        return [finding.name for finding in self.findings]

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings)) or "healthy: nothing found"


def diagnose(model: Autoencoder, X: Any) -> Diagnosis:
    """What is wrong with a fitted model, in words, with the remedy.

    It looks for: the identity, a fit worse than PCA, "sparse" codes that are only small, dead, duplicate and
    saturated units, unscaled columns, rows unlike those of the fit, too much capacity, collapsed variational
    units. Each is a function of this module that says how it is told.

    Parameters
    ----------
    model : Autoencoder
        Fitted.
    X : array or frame of shape (N, D)
        Rows that it was not fitted to, if there are any: only they show too much capacity. At least 20.

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
    check(rows, 0)
    if len(rows) < FEWEST:
        raise ValueError(f"a diagnosis needs at least {FEWEST} rows, got {len(rows)}")
    return examine(model, model.scaling_.to(rows))


def examine(model: Autoencoder, x: Array) -> Diagnosis:
    """As `diagnose`, of rows (N, D) that are scaled already."""
    h = model._encode(x)
    evidence = _Evidence(model, x, h.astype(float), 1 - explained_variance(x, model._reader.decode(h)))
    found = [look(evidence) for look in _LOOKS]
    return Diagnosis(tuple(finding for finding in found if finding is not None))


class _Evidence(NamedTuple):
    model: Autoencoder
    x: Array
    """Scaled rows (N, D), NaN where unseen."""
    h: Array
    """Their codes (N, K), as `transform` gives them."""
    error: float
    """Share of their variance that the model leaves unexplained."""

    @property
    def fitted(self) -> Any:
        return self.model._model.fitted

    @property
    def squash(self) -> Any:
        return self.model.codec_.code_activation

    @property
    def penalties(self) -> list[Any]:
        return auto.penalties(self.model.objective_)

    @property
    def alive(self) -> Array:
        """Units (K,) whose spread over the rows is more than rounding of the widest."""
        spread = self.h.std(0)
        alive: Array = spread > 1e-5 * spread.max()
        return alive


def _identity(e: _Evidence) -> Finding | None:
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
        f"the {K:,} units for {D:,} columns copy whatever they are given: they explain {_percent(1 - e.error)} of the"
        f" rows, {_percent(figures['noise'])} of noise and {_percent(figures['shuffled'])} of the rows with every"
        " column shuffled",
        f"lower n_components, or {stronger}, a corruption ('Mask(0.3)') or a sparse code ('TopK(8)')",
    )


def _worse_than_pca(e: _Evidence) -> Finding | None:
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
        f"the fit explains {_percent(score)} of the variance, PCA with as many units {_percent(pca)}",
        f"{price}start at PCA (start='auto', linear_path=True), fit longer (max_iter) or with a smaller"
        " learning_rate_init",
    )


def _small(e: _Evidence) -> Finding | None:
    """A term of the objective asks for zeros, and less than 1 % of the codes' entries are zero."""
    asking = [term for term in e.penalties if _sparsifies(term)]
    zeros = float((e.h == 0).mean())
    if not asking or zeros >= 0.01:
        return None
    kinked = [t for t in asking if isinstance(t, L1) or (isinstance(t, Prior) and not isinstance(t.p, StudentT))]
    if kinked and (e.model.inference == "map" or isinstance(e.squash, ReLU)):
        remedy = f"a larger coefficient for {kinked[0]!r}, or code_activation='TopK(8)'"
    elif kinked:
        remedy = "a code that can be 0: code_activation='ReLU()' or 'TopK(8)', or inference='map'"
    else:
        remedy = "code_activation='TopK(8)', or L1() with code_activation='ReLU()' or inference='map'"
    return Finding(
        "small codes",
        {"zeros": zeros},
        f"{' and '.join(map(repr, asking))} asks for a sparse code, but only {_percent(zeros)} of its entries are"
        " exactly 0: it is small, not sparse",
        remedy,
    )


def _sparsifies(term: Any) -> bool:
    prior = isinstance(term, Prior) and term.on == "code" and isinstance(term.p, Laplace | Exponential | StudentT)
    return prior or isinstance(term, L1 | StudentT)


def _dead(e: _Evidence) -> Finding | None:
    """More than 5 % of the units do not vary over the rows."""
    share = float(1 - e.alive.mean())
    if share <= MANY:
        return None
    revive = "AuxK() in the objective, or " if e.squash.sparse else ""
    return Finding(
        "dead units",
        {"share": share},
        f"{_percent(share)} of the units are the same, mostly 0, for all of these {len(e.h):,} rows",
        f"{revive}fewer units (n_components), a smaller penalty, or a smaller learning_rate_init",
    )


def _duplicate(e: _Evidence) -> Finding | None:
    """More than 5 % of the live units have a twin.

    Two columns of the decoder are twins at |cos| > 0.99, for a code that can't be negative at cos > 0.99 (there
    v and -v are two features), two codes at a correlation beyond ±0.99.
    """
    alive = e.alive & ((e.h != 0).sum(0) >= OFTEN)
    twin = np.zeros(int(alive.sum()), dtype=bool)
    twin |= _twins(e.h[:, alive] - e.h[:, alive].mean(0), signed=True)
    dictionary = e.model.codec_.dictionary()
    if dictionary is not None and not e.model.codec_.decoder.deep:
        columns = dictionary.detach().double().cpu().numpy()[:, alive]
        twin |= _twins(columns, signed=e.squash.range != (0.0, math.inf))
    share = float(twin.mean()) if len(twin) else 0.0
    if share <= MANY:
        return None
    return Finding(
        "duplicate units",
        {"share": share},
        f"{_percent(share)} of the live units say what another one says",
        "fewer units (n_components), or a sparse code ('TopK(8)') that makes units compete",
    )


def _twins(columns: Array, *, signed: bool) -> Array:
    """Which columns (M, K) point the way of another one, or, signed, the opposite way."""
    unit = columns / np.maximum(np.linalg.norm(columns, axis=0), np.finfo(float).tiny)
    twin = np.zeros(unit.shape[1], dtype=bool)
    for i in range(0, len(twin), UNITS):
        cos = unit[:, i : i + UNITS].T @ unit
        cos[np.arange(len(cos)), i + np.arange(len(cos))] = 0.0
        twin[i : i + UNITS] = ((np.abs(cos) if signed else cos) > ALIKE).any(1)
    return twin


def _saturated(e: _Evidence) -> Finding | None:
    """More than 5 % of the units lie within 1 % of a bound of their range in more than 95 % of the rows.

    Not where KL is a term: it asks for units that are mostly off.
    """
    low, high = e.squash.range
    if not math.isfinite(high - low) or any(isinstance(term, KL) for term in e.penalties):
        return None
    at = (e.h - low) / (high - low)
    share = float((((at < 0.01) | (at > 0.99)).mean(0) > 0.95).mean())
    if share <= MANY:
        return None
    return Finding(
        "saturated units",
        {"share": share},
        f"{_percent(share)} of the units stick to a bound of {e.squash!r}, where they learn nothing more",
        "scale='standard', a smaller learning_rate_init, L2() in the objective, or code_activation='Identity()'",
    )


def _unscaled(e: _Evidence) -> Finding | None:
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


def _unlike(e: _Evidence) -> Finding | None:
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


def _capacity(e: _Evidence) -> Finding | None:
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
        f"{_percent(e.error)} of the variance of these rows is left unexplained, of the training rows"
        f" {_percent(trained)}: the fit has learned its rows by heart",
        "narrower hidden layers, fewer units, early_stopping=True, linear_path=True, a penalty, a corruption, or more"
        " rows",
    )


def _collapsed(e: _Evidence) -> Finding | None:
    """More than 5 % of the units of a drawn code have a mean KL(N(m, s²) || N(0, 1)) below 0.01 nats."""
    codec = e.model.codec_
    if not isinstance(codec.code_activation, Sample):
        return None
    with torch.no_grad():
        p = codec(torch.from_numpy(np.ascontiguousarray(e.x)).to(codec.centre))
        nats = ToNormal().by_unit(p).mean(0)
    share = float((nats < FAINT).double().mean())
    if share <= MANY:
        return None
    return Finding(
        "collapsed units",
        {"share": share, "least": float(nats.min())},
        f"{_percent(share)} of the units are drawn from N(0, 1) whatever the row is, and tell nothing of it",
        "a coefficient of ToNormal() that is smaller, or grows (Warmup(1.0, 1000) * ToNormal()); or fewer units: those"
        " that tell nothing do no harm",
    )


_LOOKS: tuple[Callable[[_Evidence], Finding | None], ...] = (
    _identity, _worse_than_pca, _small, _dead, _duplicate, _saturated, _unscaled, _unlike, _capacity, _collapsed,
)  # fmt: skip


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation (D,) of the seen cells; 0 where there are none."""
    seen = ~np.isnan(x)
    count = np.maximum(seen.sum(0), 1)
    mean = np.where(seen, x, 0.0).sum(0) / count
    return mean, np.sqrt((np.where(seen, x - mean, 0.0) ** 2).sum(0) / count)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
