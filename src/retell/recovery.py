"""Dictionaries beside each other: what was recovered of a known one, and what two fits agree on.

A dictionary is an array (K, D), a feature a row, or a fitted model, of which it is the `components_`; features are
compared by |cos|. The cosines of all pairs are held only where each feature is to have a partner of its own: 8 bytes a
pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import issparse

from retell.arrays import as_numpy

__all__ = ["Detection", "Recovery", "nearest", "recovery", "stability", "twins", "uniqueness"]

Array = npt.NDArray[Any]

CELLS = 2**22  # of what is looked at together


class Recovery(NamedTuple):
    """What a learned dictionary of K features has of a true one of F.

    Parameters
    ----------
    mcc : float
        Mean |cos| of the pairs of the best one-to-one matching, min(K, F) of them.
    uniqueness : float
        Different true features that are some learned feature's nearest, a learned feature.
    nearest : ndarray of shape (K,)
        The true feature that is nearest to each.
    cosines : ndarray of shape (K,)
        And its |cos|.
    precision, recall, f1 : ndarray of shape (K,), or None
        Of each feature, active, as a detector of its nearest true one, where codes were given.
    """

    mcc: float
    uniqueness: float
    nearest: Array
    cosines: Array
    precision: Array | None = None
    recall: Array | None = None
    f1: Array | None = None


def recovery(dictionary: Any, truth: Any, h: Any = None, fired: Any = None) -> Recovery:
    """How much of a known dictionary was found, and how well codes tell which of its features are there.

    Parameters
    ----------
    dictionary : array of shape (K, D), or fitted model
    truth : array of shape (F, D)
    h : array or scipy.sparse of shape (N, K), optional
        Codes of some rows.
    fired : array or scipy.sparse of shape (N, F), optional
        What those rows were made of: not 0 where a true feature is there. For rows that come in blocks, see
        `Detection`.

    Returns
    -------
    Recovery

    References
    ----------
    Chanin & Garriga-Alonso 2026, "SynthSAEBench"; the matching is that of Song et al. 2025, "Position: Mechanistic
    Interpretability Should Prioritize Feature Consistency in SAEs".

    Examples
    --------
    >>> import numpy as np
    >>> from retell.metrics import recovery
    >>> truth = np.eye(3)
    >>> fired = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]])
    >>> learned, h = -truth[[1, 0]], fired[:, [1, 0]] * [[1], [1], [0], [1]]
    >>> found = recovery(learned, truth, h, fired)
    >>> found.mcc, found.uniqueness, found.nearest
    (1.0, 1.0, array([1, 0]))
    >>> found.precision, found.recall
    (array([1., 1.]), array([0.5, 1. ]))
    """
    dictionary, truth = _unit(dictionary), _unit(truth)
    numbers, cosines = nearest(dictionary, truth)
    found = Recovery(float(_matched(dictionary, truth)[2].mean()), _uniqueness(numbers), numbers, cosines)
    if h is None and fired is None:
        return found
    if h is None or fired is None:
        raise ValueError("codes and what was truly there come together: give both h and fired, or neither")
    told = Detection(numbers)
    told.add(h, fired)
    return found._replace(precision=told.precision, recall=told.recall, f1=told.f1)


def uniqueness(dictionary: Any, truth: Any) -> float:
    """Different true features that are some learned feature's nearest by |cos|, a learned feature.

    Parameters
    ----------
    dictionary : array of shape (K, D), or fitted model
    truth : array of shape (F, D)

    Returns
    -------
    float
        1.0 where each learned feature has a true one of its own.

    References
    ----------
    Chanin & Garriga-Alonso 2026, "SynthSAEBench".

    Examples
    --------
    >>> import numpy as np
    >>> from retell.metrics import uniqueness
    >>> uniqueness([[2.0, 0.1], [1.0, 0.0]], np.eye(2))
    0.5
    """
    return _uniqueness(nearest(dictionary, truth)[0])


def stability(a: Any, b: Any, *, one_to_one: bool = True) -> Array:
    """|cos| of each feature of one dictionary with its partner in another, as of two seeds.

    Parameters
    ----------
    a : array of shape (K, D), or fitted model
    b : array of shape (L, D), or fitted model
    one_to_one : bool, default=True
        Match them so that the sum is largest and no feature has two partners; it takes 8 K L bytes. Else each has the
        nearest, which may be another's too.

    Returns
    -------
    ndarray of shape (K,)
        0 for those that are left without a partner where K > L; its mean is the stability of the whole.

    References
    ----------
    Song et al. 2025, "Position: Mechanistic Interpretability Should Prioritize Feature Consistency in SAEs".

    Examples
    --------
    >>> import numpy as np
    >>> from retell.metrics import stability
    >>> stability(np.eye(3), [[0, 0, 2], [3, 0, 4]])
    array([0.6, 0. , 1. ])
    """
    a, b = _unit(a), _unit(b)
    if not one_to_one:
        return nearest(a, b)[1]
    cosines = np.zeros(len(a))
    rows, _, there = _matched(a, b)
    cosines[rows] = there
    return cosines


def nearest(a: Any, b: Any) -> tuple[Array, Array]:
    """For each feature of a (K, D), the number (K,) of the nearest in b (L, D), and their |cos| (K,)."""
    a, b = _unit(a), _unit(b)
    numbers, cosines = np.empty(len(a), np.int64), np.empty(len(a))
    for i, cos in _cosines(a, b):
        some = slice(i, i + len(cos))
        numbers[some] = cos.argmax(1)
        cosines[some] = cos.max(1)
    return numbers, cosines


def twins(V: Any, least: float, *, signed: bool) -> Array:
    """For each feature (K,) of a dictionary (K, D) the number of one that points its way: cos > least; -1 for none.

    Signed, the opposite way is its way too.
    """
    unit = _unit(V)
    partner = np.full(len(unit), -1)
    size = max(1, CELLS // max(len(unit), 1))
    for i in range(0, len(unit), size):
        cos = unit[i : i + size] @ unit.T
        cos = np.abs(cos, out=cos) if signed else cos
        cos[np.arange(len(cos)), i + np.arange(len(cos))] = -1
        some = cos.argmax(1)
        partner[i : i + size] = np.where(cos[np.arange(len(cos)), some] > least, some, -1)
    return partner


class Detection:
    """Precision, recall and F1 of features as detectors of true ones; rows may come in blocks.

    Parameters
    ----------
    nearest : array of shape (K,)
        The true feature that each should detect, as `recovery` says it.

    Attributes
    ----------
    precision, recall, f1 : ndarray of shape (K,)
        0 where there is nothing to divide by: for a feature that was never active, or never should have been.

    Examples
    --------
    >>> from retell.metrics import Detection
    >>> told = Detection([1, 0])
    >>> told.add([[0.5, 0.0], [0.0, 1.0]], [[0, 1], [1, 1]])
    >>> told.precision, told.recall, told.f1.round(3)
    (array([1., 1.]), array([0.5, 1. ]), array([0.667, 1.   ]))
    """

    def __init__(self, nearest: Any) -> None:
        self.nearest = np.asarray(nearest)
        self.hits, self.active, self.due = (np.zeros(len(self.nearest), np.int64) for _ in range(3))

    def add(self, h: Any, fired: Any) -> None:
        """Codes (n, K) and what was truly there (n, F), arrays or scipy.sparse."""
        h, fired = (some.tocsr() if issparse(some) else np.asarray(some) for some in (h, fired))
        if h.shape != (fired.shape[0], len(self.nearest)):
            expected = (fired.shape[0], len(self.nearest))
            raise ValueError(f"h has shape {h.shape}: {expected}, the rows of fired and the features, was expected")
        if len(self.nearest) and not 0 <= self.nearest.min() <= self.nearest.max() < fired.shape[1]:
            raise ValueError(
                f"features {self.nearest.min()} to {self.nearest.max()} are to be detected, fired has {fired.shape[1]}"
            )
        size = max(1, CELLS // max(h.shape[1], fired.shape[1]))
        for i in range(0, h.shape[0], size):
            on, due = (_dense(some[i : i + size]) != 0 for some in (h, fired))
            due = due[:, self.nearest]
            self.hits += (on & due).sum(0)
            self.active += on.sum(0)
            self.due += due.sum(0)

    @property
    def precision(self) -> Array:
        return _ratio(self.hits, self.active)

    @property
    def recall(self) -> Array:
        return _ratio(self.hits, self.due)

    @property
    def f1(self) -> Array:
        return _ratio(2 * self.hits, self.active + self.due)


def _uniqueness(numbers: Array) -> float:
    return len(np.unique(numbers)) / len(numbers)


def _ratio(part: Array, whole: Array) -> Array:
    ratio: Array = part / np.maximum(whole, 1)
    return ratio


def _dense(some: Any) -> Array:
    dense: Array = some.toarray() if issparse(some) else some
    return dense


def _unit(dictionary: Any) -> Array:
    """Rows of length 1; a row of zeros stays."""
    of_model = hasattr(dictionary, "fit")
    V = np.asarray(as_numpy(dictionary.components_ if of_model else dictionary))
    if V.ndim != 2 or V.dtype.kind not in "biuf":
        raise ValueError(f"a dictionary is an array (features, columns) of numbers, got shape {V.shape} of {V.dtype}")
    V = V if V.dtype == np.float32 else V.astype(float)
    if not np.isfinite(V).all():
        raise ValueError(f"feature {np.flatnonzero(~np.isfinite(V).all(1))[0]} of a dictionary is not finite")
    norm = np.linalg.norm(V, axis=1, keepdims=True)
    unit: Array = V / np.where(norm > 0, norm, 1)
    return unit


def _cosines(a: Array, b: Array) -> Iterator[tuple[int, Array]]:
    """The number of the first of some rows of a, and their |cos| (n, L) with all of b; both have unit rows."""
    if not (len(a) and len(b)):
        raise ValueError(f"dictionaries of {len(a)} and of {len(b)} features can't be compared")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of {a.shape[1]} and of {b.shape[1]} columns can't be compared")
    size = max(1, CELLS // len(b))
    for i in range(0, len(a), size):
        cos = a[i : i + size] @ b.T
        yield i, np.abs(cos, out=cos)


def _matched(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """Numbers of the features of a and of b that are partners, ascending in a, and their |cos|."""
    few, many = (a, b) if len(a) <= len(b) else (b, a)
    cost = np.empty((len(few), len(many)))  # as the solver wants it, which would make a copy of anything else
    for i, cos in _cosines(few, many):
        np.negative(cos, out=cost[i : i + len(cos)])
    first, second = linear_sum_assignment(cost)
    cosines = -cost[first, second]
    if few is a:
        return first, second, cosines
    order = np.argsort(second)
    return second[order], first[order], cosines[order]
