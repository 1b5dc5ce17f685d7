"""Which cells make a row odd, and what they would be if they went with the others.

    nats_nj = log p(x'_n, h'_n) - log p(x_n, h_n),   x' is x, but with E[x_nj | all other cells] in cell j

Residuals tell less, but those of a net that has learned to do without cells: an odd cell moves the code, so that it is
reconstructed in part and others are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Surprise", "surprise_of"]

Array = npt.NDArray[Any]

CELLS = 2**20  # of rows that are looked at together
SHOWN = 5


@dataclass(frozen=True)
class Surprise:
    """What makes each of N rows odd. Printed, it is a table of the five oddest.

    Parameters
    ----------
    nats : ndarray of shape (N, D)
        By how much the row's log density would rise if the cell were what the others say; NaN where it is unseen.
    expected : ndarray of shape (N, D)
        What the others say, in the row's own units; of unseen cells too.
    given : ndarray of shape (N, D)
        The rows.
    log_density : ndarray of shape (N,)
        As `score_samples`.
    columns : sequence of str
        What the columns are called.
    """

    nats: Array
    expected: Array
    given: Array
    log_density: Array
    columns: Sequence[str]

    @property
    def oddest(self) -> Array:
        """All rows (N,), the one of least log density first."""
        order: Array = np.argsort(self.log_density, kind="stable")
        return order

    def __len__(self) -> int:
        return len(self.nats)

    def __str__(self) -> str:
        return self.table()

    def table(self, n: int = SHOWN, cells: int = 3, numbers: Array | None = None) -> str:
        """The n oddest rows, each with so many of its oddest cells, the oddest first.

        Rows are called by `numbers` (N,), by default from 0 on.
        """
        numbers = np.arange(len(self)) if numbers is None else numbers
        lines = [f"{'row':>7} {'log density':>12}  cells: given (expected, nats)"]
        for row in self.oddest[:n]:
            nats = np.nan_to_num(self.nats[row])
            said = [
                f"{self.columns[j]} {self.given[row, j]:.4g} ({self.expected[row, j]:.4g}, {nats[j]:.3g})"
                for j in np.argsort(-nats, kind="stable")[:cells]
                if nats[j] > 0
            ]
            lines.append(f"{numbers[row]:>7} {self.log_density[row]:>12.5g}  {', '.join(said)}".rstrip())
        return "\n".join(lines)


def surprise_of(x: Array, log_p: Callable[[Array], Array], complete: Callable[[Array], Array]) -> tuple[Array, Array]:
    """nats and expected (N, D) of rows (N, D), NaN where unseen.

    Parameters
    ----------
    x : ndarray of shape (N, D)
    log_p : callable
        Log density (N,) of such rows.
    complete : callable
        Such rows with answers in their unseen cells.
    """
    nats, expected, step = np.empty(x.shape), np.empty(x.shape), max(1, CELLS // x.shape[1])
    for i in range(0, x.size, step):
        row, column = np.divmod(np.arange(i, min(i + step, x.size)), x.shape[1])
        other, cell = x[row], (np.arange(len(row)), column)  # the row once for each of its cells
        other[cell] = np.nan
        other[cell] = expected[row, column] = complete(other)[cell]
        nats[row, column] = log_p(other)
    nats -= log_p(x)[:, None]
    nats[np.isnan(x)] = np.nan
    return nats, expected
