"""What "auto" means: every rule is a function of shapes and types, never of a clock."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from retell.constraints import Free, UnitNorm, UnitRMS
from retell.corruptions import Nothing
from retell.objective import Objective
from retell.penalties import L1, Contractive

__all__ = ["constraint", "device", "dtype", "n_components", "warn_identity"]

Array = npt.NDArray[Any]


def n_components(given: Any, variances: Array) -> int:
    """K: as given, all columns for None, "auto" = max(1, min(32, D // 2)), or a share of variance.

    Parameters
    ----------
    given : int, float, "auto" or None
    variances : ndarray of shape (D,)
        Eigenvalues of the covariance of the scaled rows, descending.
    """
    width = len(variances)
    if given is None:
        return width
    if isinstance(given, str):
        return max(1, min(32, width // 2))
    if isinstance(given, float):
        kept = np.cumsum(variances) / max(variances.sum(), np.finfo(float).tiny)
        return min(width, int(np.searchsorted(kept, given - 1e-12)) + 1)
    return int(given)


def constraint(objective: Objective, code_activation: Any, *, deep: bool, tied: bool) -> Any:
    """What keeps a penalty from being escaped by shrinking the code and growing the decoder.

    With L1, Contractive or a sparse code: UnitNorm on a linear decoder, UnitRMS with a deep one, nothing
    where weights are tied (the decoder can't grow alone).
    """
    escapable = code_activation.sparse or any(isinstance(term, L1 | Contractive) for term in objective.terms)
    if not escapable or tied:
        return Free()
    return UnitRMS() if deep else UnitNorm()


def warn_identity(codec: Any, objective: Objective, corruption: Any) -> None:
    """Warn where nothing keeps the codec from learning the identity."""
    kept_back = codec.code_activation.sparse or not isinstance(corruption, Nothing)
    if codec.n_units >= len(codec.centre) and not kept_back and len(objective.terms) == 1:
        warnings.warn(
            f"the code has {codec.n_units} units for {len(codec.centre)} columns and nothing holds it back: the"
            " autoencoder can learn the identity and nothing else. Lower n_components, add a penalty (objective="
            "'MSE() + 0.001 * L1()'), a corruption ('Mask(0.3)') or a sparse code ('TopK(8)')",
            UserWarning,
            stacklevel=3,
        )


def dtype(precision: str, solver: str) -> torch.dtype:
    """float64 for closed forms, float32 otherwise."""
    if precision == "auto":
        return torch.float64 if solver == "exact" else torch.float32
    return torch.float64 if precision == "float64" else torch.float32


def device(name: str) -> torch.device:
    """cuda if there is one, else the cpu."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def hidden_layer_sizes(n: int, D: int, K: int) -> tuple[int, ...]:
    """One hidden layer of 4 K to 256 units, no wider than the rows can carry."""
    return (int(min(256, max(16, 4 * K, 2 * D), max(16, n // 4))),)


def batch_size(n: int) -> int:
    """128 rows, fewer where an epoch would have under ten steps, at least 16."""
    return int(min(128, max(16, n // 10)))


def max_iter(n: int, batch: int) -> int:
    """Epochs enough for some 4,000 steps, between 20 and 200."""
    return int(min(200, max(20, 4000 * batch // max(n, 1))))


def learning_rate(codec: Any) -> float:
    """1e-3 for deep nets, 3e-3 for linear ones."""
    return 1e-3 if codec.encoder.deep or codec.decoder.deep else 3e-3
