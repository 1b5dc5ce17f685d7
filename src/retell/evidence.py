"""What a diagnosis looks at: a fitted model, some rows and what the model makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse

from retell import auto
from retell.csr import joined, nonzero
from retell.density import WIDE
from retell.metrics import explained_variance
from retell.rows.blocks import blocks, rows_a_block

if TYPE_CHECKING:
    from retell.estimator import Autoencoder

__all__ = ["Evidence", "gather"]

Array = npt.NDArray[Any]


class Evidence(NamedTuple):
    """All in the scaled space."""

    model: Autoencoder
    x: Array
    """Scaled rows (N, D), NaN where unseen."""
    h: Any
    """Their codes (N, K), as `transform` gives them, float64; of more than 1,024 units a csc_array."""
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
    def active(self) -> Array:
        """In how many rows each unit (K,) is not 0."""
        active: Array = np.diff(self.h.indptr) if issparse(self.h) else np.count_nonzero(self.h, axis=0)
        return active

    @property
    def spread(self) -> Array:
        """Standard deviations of the units (K,)."""
        spread: Array
        if not issparse(self.h):
            spread = self.h.std(0)
            return spread
        mean, square = (np.asarray(some.mean(axis=0)).ravel() for some in (self.h, self.h.multiply(self.h)))
        spread = np.sqrt(np.maximum(square - mean**2, 0))
        return spread

    @property
    def alive(self) -> Array:
        """Units (K,) whose spread over the rows is more than rounding of the widest."""
        spread = self.spread
        alive: Array = spread > 1e-5 * spread.max()
        return alive


def gather(model: Autoencoder, x: Array) -> Evidence:
    """What scaled rows (N, D) show."""
    reader, K = model._reader, model.n_components_
    x_hat, found = np.empty(x.shape), []  # type: Array, list[Any]
    for i, some in blocks(x, len(x) if K <= WIDE else rows_a_block(K)):
        h = reader.encode(some, model.inference)
        x_hat[i : i + len(some)] = reader.decode(h)
        found.append(h.astype(float) if K <= WIDE else nonzero(h.astype(float)))
    whole = found[0] if K <= WIDE else joined(found, K).tocsc()
    return Evidence(model, x, whole, 1 - explained_variance(x, x_hat))
