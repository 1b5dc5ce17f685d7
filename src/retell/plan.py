"""From settings and rows to everything a fit needs, every "auto" resolved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retell import auto
from retell.codec import Codec
from retell.constraints import Free, UnitRMS
from retell.descend import Recipe
from retell.factors import Factors
from retell.metrics import explained_variance
from retell.networks import mirror, mlp
from retell.objective import Objective
from retell.scaling import Scaling
from retell.seeds import SPLIT, START, generator
from retell.settings import Settings
from retell.solvers.codes import check_map
from retell.solvers.exact import Problem, Spectrum, why_not
from retell.start import fill_random, fill_start

__all__ = ["Parts", "Plan", "build_codec", "make_plan"]

Array = npt.NDArray[Any]
Widths = tuple[tuple[int, ...], tuple[int, ...]]

MOST_FACTORS = 32  # a row's posterior is a matrix of as many rows and columns


@dataclass(frozen=True)
class Parts:
    """The letters of the equation, as objects; `constraint` may still be "auto"."""

    objective: Objective
    corruption: Any
    code_activation: Any
    constraint: Any


@dataclass
class Plan:
    """A fit, before its first step."""

    settings: Settings
    parts: Parts
    seed: int
    scaling: Scaling
    x: Array
    """Scaled rows (N, D), float64, NaN where unseen."""
    spectrum: Spectrum
    """Of x's covariance: the factors' where rows have holes."""
    factors: Factors
    """Completes rows."""
    train: Array
    held_out: Array
    """Row numbers; `held_out` is empty without early stopping."""
    widths: Widths
    """Hidden widths of encoder and decoder."""
    codec: Codec
    solver: str
    reason: str
    """Why this solver."""
    recipe: Recipe

    @property
    def problem(self) -> Problem:
        return _problem(self.parts, self.settings, self.widths, bool(np.isnan(self.x).any()))

    def adopt(self, codec: Codec, scaling: Scaling, factors: Factors, rows: Array) -> None:
        """Go on with what an earlier fit has settled, on new rows (N, D)."""
        self.codec, self.scaling, self.factors = codec, scaling, factors
        self.x = scaling.to(rows)
        off = self.x - scaling.centre
        self.spectrum = _second_moments(off, self.settings, bool(np.isnan(off).any()))[0]

    def pca_score(self, judged: Array) -> float:
        """R² on the rows `judged` of PCA at the same K, fitted to all rows."""
        axes = self.spectrum.axes[:, : self.codec.n_units]
        off = np.nan_to_num(self.x[judged] - self.scaling.centre)
        return explained_variance(self.x[judged], off @ axes @ axes.T + self.scaling.centre)

    def tensor(self, rows: Array) -> Tensor:
        """Rows as the codec takes them."""
        return torch.from_numpy(np.ascontiguousarray(rows)).to(self.codec.centre)


def make_plan(settings: Settings, parts: Parts, rows: Array, seed: int) -> Plan:
    """Resolve every "auto", build the codec and fill its first θ.

    Parameters
    ----------
    settings : Settings
    parts : Parts
    rows : ndarray of shape (N, D)
        Checked rows, NaN where unseen.
    seed : int
    """
    loss = parts.objective.loss
    scaling = Scaling.fit(rows, settings.scale, bounded=np.isfinite(loss.support).any())
    x = scaling.to(rows)
    holes = bool(np.isnan(x).any())
    spectrum, factors = _second_moments(x - scaling.centre, settings, holes)
    K = auto.n_components(settings.n_components, spectrum.values)
    widths = _widths(settings, parts, len(x), x.shape[1], K)
    deep = len(widths[1]) > 0
    constraint = parts.constraint
    if constraint == "auto":
        constraint = auto.constraint(parts.objective, parts.code_activation, deep=deep, tied=settings.tied)
    parts = Parts(parts.objective, parts.corruption, parts.code_activation, constraint)
    why = why_not(_problem(parts, settings, widths, holes))
    solver = "descend" if why or settings.start == "random" else "exact"
    if settings.solver == "exact" and why:
        raise ValueError(f"solver='exact' has no closed form here: {why}; use solver='auto' or 'descend'")
    solver = solver if settings.solver == "auto" else settings.solver
    dtype = auto.dtype(settings.precision, solver)
    codec = build_codec(settings, parts, x.shape[1], K, widths, dtype)
    if settings.inference == "map":
        check_map(parts.objective, codec.code_activation)
    codec.centre = torch.from_numpy(scaling.centre).to(dtype)
    far = auto.far(codec, settings.start, constraint)
    if settings.start == "random":
        fill_random(codec, loss, generator(seed, START))
    else:
        axes = torch.from_numpy(spectrum.axes[:, : 0 if far else K].copy())
        fill_start(codec, torch.from_numpy(x), axes, loss, generator(seed, START))
    train, held_out = _split(settings, len(x), seed)
    codec.n_rows.fill_(len(train))
    return Plan(
        settings=settings,
        parts=parts,
        seed=seed,
        scaling=scaling,
        x=x,
        spectrum=spectrum,
        factors=factors,
        train=train,
        held_out=held_out,
        widths=widths,
        codec=codec.to(auto.device(settings.device)),
        solver=solver,
        reason=why or "there is a closed form",
        recipe=_recipe(settings, parts, len(train), codec, far=far),
    )


def build_codec(settings: Settings, parts: Parts, D: int, K: int, widths: Widths, dtype: torch.dtype) -> Codec:
    """The network of D columns and K units, its weights still empty, its centre zero.

    Raises
    ------
    ValueError
        If the parts can't work with each other.
    """
    _ = parts.objective.loss  # there is one, or a sentence
    inner, outer = widths
    outputs = getattr(parts.code_activation, "outputs", 1)
    if settings.tied and outputs > 1:
        raise ValueError(
            f"tied=True shares the encoder's matrix with the decoder, but {parts.code_activation!r} takes {outputs}"
            " numbers for each unit: use tied=False"
        )
    encoder = mlp([D, *inner, outputs * K], settings.activation, linear_path=settings.linear_path)
    if settings.tied:
        decoder = mirror(encoder, tied=True)
    else:
        decoder = mlp([K, *outer, D], settings.activation, linear_path=settings.linear_path)
    learns_scale = any(getattr(term, "learned", False) for term in parts.objective.terms)
    squash = parts.code_activation.bind(K)
    codec = Codec(encoder, squash, decoder, torch.zeros(D), learns_scale=learns_scale).to(dtype).train(False)
    parts.objective.check(codec, parts.corruption)
    if codec.dictionary() is None and not isinstance(parts.constraint, Free | UnitRMS):
        raise ValueError(
            f"constraint={parts.constraint!r} acts on the matrix of a linear decoder or of the linear path, and this"
            " decoder has neither: use linear_path=True or decoder_hidden_layer_sizes=()"
        )
    return codec


def _second_moments(x: Array, settings: Settings, holes: bool) -> tuple[Spectrum, Factors]:
    """Covariance and factor model of centred rows; with holes the factors say what the covariance is."""
    D = x.shape[1]
    given = settings.n_components
    n_factors = max(1, min(given if isinstance(given, int) else MOST_FACTORS, MOST_FACTORS, D // 2))
    if holes:
        factors = Factors.fit(x, n_factors)
        return Spectrum.of(factors.covariance), factors
    S = x.T @ x / len(x)
    spectrum = Spectrum.of(S)
    return spectrum, Factors.from_covariance(S, spectrum.values[:n_factors], spectrum.axes[:, :n_factors])


def _widths(settings: Settings, parts: Parts, n: int, D: int, K: int) -> Widths:
    inner = settings.hidden_layer_sizes
    if inner == "auto":
        inner = () if K >= D or parts.code_activation.sparse else auto.hidden_layer_sizes(n, D)
    assert isinstance(inner, tuple)
    outer = settings.decoder_hidden_layer_sizes
    outer = inner[::-1] if isinstance(outer, str) else outer
    if settings.tied and outer != inner[::-1]:
        raise ValueError(
            f"tied=True needs a decoder that mirrors the encoder {inner}, got decoder_hidden_layer_sizes={outer}"
        )
    return inner, outer


def _problem(parts: Parts, settings: Settings, widths: Any, holes: bool) -> Problem:
    return Problem(
        parts.objective,
        parts.corruption,
        parts.code_activation,
        parts.constraint,
        settings.tied,
        not any(widths),
        holes,
    )


def _split(settings: Settings, n: int, seed: int) -> tuple[Array, Array]:
    """Row numbers to train on and to hold out, each in the rows' own order."""
    if not settings.early_stopping:
        return np.arange(n), np.arange(0)
    out = auto.held_out_rows(n, settings.validation_fraction)
    order = torch.randperm(n, generator=generator(seed, SPLIT)).numpy()
    return np.sort(order[out:]), np.sort(order[:out])


def _recipe(settings: Settings, parts: Parts, n: int, codec: Codec, *, far: bool) -> Recipe:
    batch = settings.batch_size if isinstance(settings.batch_size, int) else auto.batch_size(n)
    rate, most, decay = settings.learning_rate_init, settings.max_iter, settings.weight_decay
    return Recipe(
        objective=parts.objective,
        corruption=parts.corruption,
        constraint=parts.constraint,
        batch_size=batch,
        learning_rate=auto.learning_rate(codec, settings.start, far=far) if isinstance(rate, str) else rate,
        max_iter=auto.max_iter(n, batch, far=far) if isinstance(most, str) else most,
        decay=auto.WEIGHT_DECAY if isinstance(decay, str) else decay,
        n_iter_no_change=settings.n_iter_no_change,
        tol=settings.tol,
        sure=0.0 if far or not parts.objective.loss_is_of_rows else auto.SURE,
    )
