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

from retell.activations import Identity
from retell.constraints import Free
from retell.corruptions import Gaussian, Mask, Nothing
from retell.losses import MSE
from retell.objective import Objective
from retell.penalties import L2, Contractive

__all__ = ["Problem", "Spectrum", "solve", "why_not"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Spectrum:
    """A covariance and its eigendecomposition, largest first.

    Parameters
    ----------
    S : ndarray of shape (D, D)
        Covariance with weight 1/n.
    values : ndarray of shape (D,)
        Eigenvalues, descending, at least 0.
    axes : ndarray of shape (D, D)
        Eigenvectors in columns: PCA's components. In each, the entry of largest size is positive.
    """

    S: Array
    values: Array
    axes: Array

    @classmethod
    def of(cls, S: Array) -> Spectrum:
        values, axes = np.linalg.eigh(S)
        values, axes = np.maximum(values[::-1], 0.0), axes[:, ::-1]
        signs = np.where(axes[np.abs(axes).argmax(0), range(len(S))] < 0, -1.0, 1.0)
        return cls(S, values, axes * signs)


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
    width = len(spectrum.S)
    if isinstance(problem.corruption, Mask):
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
