"""What each unit of a code stands for, as rows show it.

    rate_k = share of the rows n with h_nk ≠ 0,    share_nk = |h_nk| ‖v_k‖ / Σ_j |h_nj| ‖v_j‖
    clarity_k = (1 - rate_k) · (mean of share_nk over its top rows) · (1 - largest cos(v_k, v_j))

A clear feature is rare, makes up most of what is told of the rows where it is strongest, and no other one points its
way. v_k are the dictionary's columns, in the scaled space.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retell.csr import Few, nonzero
from retell.reader import Check, Reader

__all__ = ["Features", "features_of", "neighbours_of"]

Array = npt.NDArray[Any]

CELLS = 2**22  # cosines that are held together
ENTRIES = 2**20  # active units of rows that are looked at together
SHOWN = 10


@dataclass(frozen=True)
class Features:
    """The K units of a code, each in one place of every array. Printed, it is a table of the ten clearest.

    Parameters
    ----------
    n_rows : int
        N, how many rows were looked at.
    rate : ndarray of shape (K,)
        Share of the rows in which the unit is active, that is not 0.
    mean : ndarray of shape (K,)
        Mean |code| where it is active; 0 for a dead one.
    rows : ndarray of shape (K, top)
        Numbers of the rows where |code| is largest, the largest first; -1 where it was active in fewer.
    values : ndarray of shape (K, top)
        Codes of those rows; 0 where there are none.
    shares : ndarray of shape (K, top)
        What part of all that the code tells of that row the unit makes up.
    neighbours : ndarray of shape (K, neighbours)
        The units whose columns of the dictionary are nearest by cosine, by its size where codes may be negative.
    cosines : ndarray of shape (K, neighbours)
    labels : ndarray of shape (N,), or None
        What rows are called.
    """

    n_rows: int
    rate: Array
    mean: Array
    rows: Array
    values: Array
    shares: Array
    neighbours: Array
    cosines: Array
    labels: Array | None = None

    @property
    def max(self) -> Array:
        """The largest |code| (K,)."""
        largest: Array = np.abs(self.values[:, 0])
        return largest

    @property
    def log_rate(self) -> Array:
        """log10 of the rate (K,); minus infinity for a dead unit."""
        with np.errstate(divide="ignore"):
            logarithm: Array = np.log10(self.rate)
        return logarithm

    @property
    def clarity(self) -> Array:
        """(K,), from 0 to 1; 0 for a dead unit. Without neighbours it is not known whether another points its way."""
        alike = np.clip(np.abs(self.cosines[:, :1]).sum(1), 0, 1)
        clarity: Array = (1 - self.rate) * self.shares.mean(1) * (1 - alike)
        return clarity

    @property
    def clearest(self) -> Array:
        """All units (K,), the clearest first."""
        order: Array = np.argsort(-self.clarity, kind="stable")
        return order

    def __len__(self) -> int:
        return len(self.rate)

    def __str__(self) -> str:
        return self.table()

    def table(self, n: int = SHOWN, width: int = 80) -> str:
        """The n clearest as lines of at most so many columns."""
        lines = [f"{'unit':>7} {'clarity':>7} {'active':>8} {'mean':>8} {'max':>8} {'nearest':>15}  top rows"]
        for k in self.clearest[:n]:
            near = f"{self.neighbours[k, 0]} ({self.cosines[k, 0]:.2f})" if self.cosines.shape[1] else "-"
            line = (
                f"{k:>7} {self.clarity[k]:>7.3f} {100 * self.rate[k]:>6.3g} % {self.mean[k]:>8.3g} {self.max[k]:>8.3g}"
                f" {near:>15}  "
            )
            lines.append(line + textwrap.shorten(", ".join(self.called(k)), width - len(line), placeholder=" ..."))
        return "\n".join(lines)

    def called(self, k: int) -> list[str]:
        """The top rows of unit k, by label or number."""
        there = self.rows[k][self.rows[k] >= 0]
        return [str(n if self.labels is None else self.labels[n]) for n in there]


def features_of(
    reader: Reader, rows: Array, how: str, check: Check, labels: Sequence[Any] | None, top: int, neighbours: int
) -> Features:
    """As `Autoencoder.features`, of rows (N, D) in their own units."""
    named = None if labels is None else np.asarray(labels)
    if named is not None and named.shape != (len(rows),):
        raise ValueError(f"labels has shape {named.shape}: one for each of the {len(rows)} rows was expected")
    if top < 1 or neighbours < 0:
        raise ValueError(f"top must be at least 1 and neighbours at least 0, got top={top} and neighbours={neighbours}")
    dictionary = reader.codec.dictionary()
    if dictionary is None:
        raise ValueError(
            "a unit of a deep decoder without a linear path has no direction of its own: use linear_path=True or"
            " decoder_hidden_layer_sizes=()"
        )
    V = dictionary.detach().T
    seen = _Seen(torch.linalg.vector_norm(V.double(), dim=1).cpu().numpy(), min(top, len(rows)))
    reader.coded(lambda i, j, h: seen.add(i, j, nonzero(h)), rows, how, check)
    seen.absorb()
    near = neighbours_of(V, neighbours, signed=reader.codec.code_activation.range[0] < 0)
    mean = seen.total / np.maximum(seen.count, 1)
    return Features(len(rows), seen.count / len(rows), mean, seen.rows, seen.values, seen.shares, *near, named)


def neighbours_of(V: Tensor, n: int, *, signed: bool) -> tuple[Array, Array]:
    """The n nearest (K, n) of each feature of a dictionary (K, D), and their cosines; never all cosines at once.

    Parameters
    ----------
    V : Tensor of shape (K, D)
    n : int
    signed : bool
        Whether opposite features are near, too.
    """
    unit = torch.nn.functional.normalize(V, dim=1)
    K = len(unit)
    n = min(n, K - 1)
    numbers, cosines = torch.zeros(K, n, dtype=torch.long), torch.zeros(K, n, dtype=V.dtype)
    size = max(1, CELLS // K)
    for i in range(0, K if n else 0, size):
        cos = unit[i : i + size] @ unit.T
        near = cos.abs() if signed else cos
        near.diagonal(i).fill_(-torch.inf)
        numbers[i : i + size] = torch.topk(near, n).indices
        cosines[i : i + size] = cos.gather(1, numbers[i : i + size].to(cos.device))
    return numbers.numpy(), cosines.numpy()


class _Seen:
    """What was seen of codes that come in blocks, whose order does not matter.

    Parameters
    ----------
    norms : ndarray of shape (K,)
        Lengths of the dictionary's columns.
    top : int
        Rows to keep of each unit.
    """

    def __init__(self, norms: Array, top: int) -> None:
        K = len(norms)
        self.norms, self.top = norms, top
        self.count, self.total = np.zeros(K, np.int64), np.zeros(K)
        self.rows, self.values, self.shares = np.full((K, top), -1), np.zeros((K, top)), np.zeros((K, top))
        self.waiting: dict[int, tuple[int, Few]] = {}
        self.next, self.ready, self.size, self.lock = 0, [], 0, Lock()  # type: int, list[tuple[int, Few]], int, Any

    def add(self, i: int, j: int, some: Few) -> None:
        """The codes of the rows i to j; they count in the rows' order, so that sums have the same bits every time."""
        with self.lock:
            self.waiting[i] = j, some
            while self.next in self.waiting:
                first = self.next
                self.next, some = self.waiting.pop(first)
                self.ready.append((first, some))
                self.size += len(some.values)
            if self.size >= ENTRIES:
                self.absorb()

    def absorb(self) -> None:
        """Count what is ready."""
        if not self.size:
            return
        parts, self.ready, self.size = self.ready, [], 0
        units, values = (np.concatenate([some[i] for _, some in parts]) for i in (1, 0))
        rows = np.concatenate([np.repeat(first + np.arange(len(some.counts)), some.counts) for first, some in parts])
        sizes = np.abs(values.astype(float))
        told = sizes * self.norms[units]
        whole = np.bincount(rows - rows[0], told)[rows - rows[0]]
        shares = np.divide(told, whole, out=np.zeros_like(told), where=whole > 0)
        K = len(self.norms)
        self.count += np.bincount(units, minlength=K)
        self.total += np.bincount(units, sizes, minlength=K)
        stronger = sizes > np.abs(self.values[units, -1])  # of equal ones the first row stays
        self._keep(*(some[stronger] for some in (units, rows, values, shares)))

    def _keep(self, units: Array, rows: Array, values: Array, shares: Array) -> None:
        """Of these and of what was kept, the top of each unit."""
        touched = np.unique(units)
        old, place = np.nonzero(self.rows[touched] >= 0)
        old = touched[old]
        units = np.concatenate([old, units])
        kept = [np.concatenate([table[old, place], some]) for table, some in
                ((self.rows, rows), (self.values, values), (self.shares, shares))]  # fmt: skip
        order = np.lexsort((kept[0], -np.abs(kept[1]), units))
        units = units[order]
        rank = np.arange(len(units)) - np.searchsorted(units, units)
        best = rank < self.top
        for table, some in zip((self.rows, self.values, self.shares), kept, strict=True):
            table[units[best], rank[best]] = some[order][best]
