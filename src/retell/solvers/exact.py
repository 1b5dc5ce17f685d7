"""Closed forms: the linear autoencoder with squared error, and what may be added to it.

With S the covariance of the scaled rows (1/n), eigenvalues l_i and eigenvectors u_i, every optimum here
except the masked one is  V W = Σ_{i <= K} gain_i u_i u_iᵀ, in units of squared error a row:

    nothing             gain = 1                                          PCA
    Gaussian(s)         gain = l / (l + s²)                               a ridge
    c · L2              gain = (l - λ)+ / l,   λ = c D / 2 (tied c D / 4) Kunin et al. 2019
    both                gain = (l - λ)+ / (l + s²)
    γ · Contractive     as L2 with λ = γ D / 2, tied only
    Mask(p), untied     V W = [P Q^(-1/2)]_K Q^(-1/2),   P = q S,  Q = q² S + q (1 - q) diag S,  q = 1 - p

Encoder and decoder share each gain evenly, so that tied and untied nets have the same optimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from scipy.linalg.blas import dgemm

from retell.activations import Identity
from retell.constraints import Free
from retell.corruptions import Gaussian, Mask, Nothing
from retell.losses import MSE
from retell.objective import Objective
from retell.penalties import L2, Contractive

__all__ = ["Problem", "Spectrum", "column_errors", "mean_squares", "penalty", "signs", "solve", "times", "why_not"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Spectrum:
    """A covariance's leading eigenvalues and eigenvectors, largest first.

    Parameters
    ----------
    S : ndarray of shape (D, D) or None
        Covariance with weight 1/n; None where it is too large to be held.
    variances : ndarray of shape (D,)
        Its diagonal.
    values : ndarray of shape (M,)
        Eigenvalues, descending, at least 0.
    axes : ndarray of shape (D, M)
        Eigenvectors in columns: PCA's components. In each, the entry of largest size is positive.
    images : ndarray of shape (D, M)
        S axes.
    """

    S: Array | None
    variances: Array
    values: Array
    axes: Array
    images: Array

    @classmethod
    def of(cls, S: Array, n_axes: int | None = None) -> Spectrum:
        """All of S, or its first axes: then a few cost much less."""
        varied = np.flatnonzero(np.diag(S) > 0)
        if n_axes is None or 4 * n_axes > len(varied):
            values, axes = eigh(S, driver="evd", check_finite=False)
            values, axes = values[::-1][:n_axes], axes[:, ::-1][:, :n_axes]
        else:
            alone = len(varied) < len(S)
            some = S.take(varied, axis=0).take(varied, axis=1) if alone else S
            leading = (len(some) - n_axes, len(some) - 1)
            values, found = eigh(some.T, subset_by_index=leading, check_finite=False, overwrite_a=alone)
            axes = np.zeros((len(S), n_axes))
            values, axes[varied] = values[::-1], found[:, ::-1]
        values, axes = np.maximum(values, 0.0), axes * signs(axes)
        return cls(S, np.diag(S), values, axes, axes * values)

    def times(self, some: Array, *, spanned: bool = True) -> Array:
        """S some, for vectors (D, M) that lie in the span of the axes, or for any others if S is held."""
        if spanned:
            return times(self.images, times(self.axes.T, some))
        assert self.S is not None
        return times(self.S, some)


def times(A: Array, B: Array) -> Array:
    """A B on the threads that the rest of a closed form runs on: those of two libraries slow each other down."""
    result: Array = dgemm(1.0, B.T, A.T).T
    return result


def signs(axes: Array) -> Array:
    """What makes the entry of largest size in each column positive."""
    return np.where(axes[np.abs(axes).argmax(0), range(axes.shape[1])] < 0, -1.0, 1.0)


@dataclass(frozen=True)
class Problem:
    """What decides whether a closed form exists."""

    objective: Objective
    corruption: Any
    code_activation: Any
    constraint: Any
    tied: bool
    linear: bool
    holes: bool


def why_not(problem: Problem) -> str:
    """The reason for which there is no closed form, or an empty text."""
    coefficients = _coefficients(problem.objective)
    penalised = coefficients is not None and any(c > 0 for name, c in coefficients.items() if name != "MSE")
    reasons = {
        "the net has hidden layers": not problem.linear,
        "rows have holes": problem.holes,
        f"the code activation is {problem.code_activation!r}": not isinstance(problem.code_activation, Identity),
        f"the constraint is {problem.constraint!r}": not isinstance(problem.constraint, Free),
        f"the objective is {problem.objective!r}": coefficients is None,
        f"the corruption is {problem.corruption!r}": not isinstance(problem.corruption, Nothing | Gaussian | Mask)
        or getattr(problem.corruption, "emphasis", 1.0) != 1.0
        or (isinstance(problem.corruption, Gaussian) and problem.corruption.p != 1.0),
        "Mask has one only untied and without penalties": isinstance(problem.corruption, Mask)
        and (problem.tied or penalised),
        "Contractive has one only with tied weights": not problem.tied
        and coefficients is not None
        and coefficients["Contractive"] > 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def solve(spectrum: Spectrum, n_components: int, problem: Problem) -> tuple[Array, Array]:
    """The optimal maps of centred, scaled rows.

    Parameters
    ----------
    spectrum : Spectrum
        Of the rows' covariance.
    n_components : int
        K.
    problem : Problem
        One for which `why_not` has nothing to say.

    Returns
    -------
    W : ndarray of shape (K, D)
    V : ndarray of shape (D, K)
        Wᵀ where the problem is tied.

    References
    ----------
    Baldi & Hornik 1989; Kunin et al. 2019, "Loss Landscapes of Regularized Linear Autoencoders".
    """
    coefficients = _coefficients(problem.objective)
    assert coefficients is not None
    width = len(spectrum.variances)
    if isinstance(problem.corruption, Mask):
        assert spectrum.S is not None
        W, V = _masked(spectrum.S, n_components, 1 - problem.corruption.p)
    else:
        noise = problem.corruption.scale**2 if isinstance(problem.corruption, Gaussian) else 0.0
        shrink = coefficients["L2"] * width / (4 if problem.tied else 2) + coefficients["Contractive"] * width / 2
        shrink /= coefficients["MSE"]
        values, axes = spectrum.values[:n_components], spectrum.axes[:, :n_components]
        gain = np.ones_like(values)  # PCA: an orthonormal frame, also along axes without variance
        if noise or shrink:
            room = values + noise
            gain = np.where(room > 0, np.maximum(values - shrink, 0) / np.where(room > 0, room, 1), 0.0)
        V = axes * np.sqrt(gain)
        W = V.T
    spare = max(0, n_components - width)  # units beyond the columns have nothing left to do
    return np.pad(W, ((0, spare), (0, 0))), np.pad(V, ((0, 0), (0, spare)))


def mean_squares(x: Array) -> Array:
    """Mean over the rows of each column's square (D,)."""
    result: Array = np.einsum("nd,nd->d", x, x) / len(x)
    return result


def column_errors(W: Array, V: Array, corruption: Any, spectrum: Spectrum, x: Array | None = None) -> Array:
    """E (x_j - x̂_j)² for each column (D,), over all centred rows or over x (N, D), and over the corruption.

    With q the share of cells that Mask keeps, s the spread that Gaussian adds and u_i = s² + q (1 - q) E x_i², it
    is E (x_j - q (V W x)_j)² + Σ_i (V W)_ji² u_i.
    """
    keep = 1 - corruption.p if isinstance(corruption, Mask) else 1.0
    noise = corruption.scale**2 if isinstance(corruption, Gaussian) else 0.0
    if x is None:
        squares, R = spectrum.variances, keep * spectrum.times(W.T, spanned=not isinstance(corruption, Mask))
        missed = squares - 2 * (V * R).sum(1) + keep * (times(V, times(W, R)) * V).sum(1)
    else:
        made = times(times(x, keep * W.T), V.T)
        squares, missed = mean_squares(x), mean_squares(np.subtract(x, made, out=made))
    drawn = noise + keep * (1 - keep) * squares
    result: Array = np.maximum(missed, 0.0)
    return result + (times(V, times(W * drawn, W.T)) * V).sum(1) if drawn.any() else result


def penalty(term: Any, W: Array, V: Array, problem: Problem) -> float:
    """The value of L2 or Contractive, which is the same for every row."""
    encoder, decoder = float((W**2).sum()), float((V**2).sum())
    return encoder if isinstance(term, Contractive) else (encoder + (0.0 if problem.tied else decoder)) / 2


def _masked(S: Array, n_components: int, keep: float) -> tuple[Array, Array]:
    """[P Q^(-1/2)]_K Q^(-1/2), split evenly; columns without variance stay at zero."""
    P = keep * S
    Q = keep**2 * S + keep * (1 - keep) * np.diag(np.diag(S))
    values, axes = np.linalg.eigh(Q)
    keeps = values > max(values.max(), 0.0) * 1e-12
    whiten = (axes * np.where(keeps, 1 / np.sqrt(np.where(keeps, values, 1.0)), 0.0)) @ axes.T
    left, gains, right = np.linalg.svd(P @ whiten)
    root = np.sqrt(gains[:n_components])
    return (root[:, None] * right[:n_components]) @ whiten, left[:, :n_components] * root


def _coefficients(objective: Objective) -> dict[str, float] | None:
    """The coefficient of each term, or None if any is unknown here, negative or a schedule."""
    total = {"MSE": 0.0, "L2": 0.0, "Contractive": 0.0}
    for coefficient, term in objective.summands:
        known = isinstance(term, MSE | L2) or (isinstance(term, Contractive) and term.of == "code")
        known = known and isinstance(coefficient, int | float)
        if not known or coefficient < 0:
            return None
        total[type(term).__name__] += coefficient
    return total if total["MSE"] > 0 else None
