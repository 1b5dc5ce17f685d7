"""Columns turned so that what varies most lies along a few of them.

    x Q = x - (x Y) T Yᵀ,   QᵀQ = 1,   u_i Q = ± e_i for i = 1, …, r

Adam scales each cell of a gradient by its own size. Where columns vary together that scale fits no direction of the
rows; in columns turned onto their first axes it fits those. The map changes no length, so squared errors, codes and
unit norms are what they were, and weights that were learned in turned columns are turned back.

Q is the product of r Householder reflections in the compact form of Schreiber & Van Loan (1989): 4 N D r operations,
not 2 N D².
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["AS_THEY_ARE", "Turning"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Turning:
    """An orthogonal map of the columns.

    Parameters
    ----------
    reflectors : ndarray of shape (D, r)
        Y.
    factor : ndarray of shape (r, r)
        T.
    """

    reflectors: Array
    factor: Array

    @classmethod
    def onto(cls, axes: Array) -> Self:
        """The map that takes orthonormal axes (D, r) to the first r columns, each up to its sign.

        Examples
        --------
        >>> import numpy as np
        >>> from retell.turning import Turning
        >>> turning = Turning.onto(np.full((4, 1), 0.5))
        >>> np.abs(turning(np.ones((1, 4)))).round(12)
        array([[2., 0., 0., 0.]])
        """
        r = axes.shape[1]
        packed, tau = (some.numpy() for some in torch.geqrf(torch.from_numpy(np.ascontiguousarray(axes))))
        Y = np.tril(packed, -1) + np.eye(*packed.shape)
        T = np.linalg.solve(np.eye(r) + tau[:, None] * np.triu(Y.T @ Y, 1), np.diag(tau))
        return cls(Y, T)

    def __bool__(self) -> bool:
        """Whether anything moves."""
        return self.factor.size > 0

    def __call__(self, x: Array) -> Array:
        """x Q of rows (N, D)."""
        return x - (x @ self.reflectors) @ (self.factor @ self.reflectors.T) if self else x

    def turn_(self, x: Tensor) -> Tensor:
        """x Q of rows (N, D), in place."""
        if self:
            Y, TY = (torch.from_numpy(some).to(x) for some in (self.reflectors, self.factor @ self.reflectors.T))
            x.addmm_(x @ Y, TY, alpha=-1)
        return x

    @property
    def back(self) -> Turning:
        """The map Qᵀ, which undoes it."""
        return Turning(self.reflectors, self.factor.T)


AS_THEY_ARE = Turning(np.zeros((0, 0)), np.zeros((0, 0)))
