"""Π, the constraint: θ ∈ Π after every step.

Every solver calls `tangent` on the dictionary's gradient before a step and `project` on the dictionary
after it. The dictionary V (D, K) is the matrix of a linear decoder, or of the linear path; `on_dictionary`
says whether they do anything to it. `unit` says what penalties count as one for each code unit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retell.parts import Part

__all__ = ["Free", "NonNegative", "UnitNorm", "UnitRMS"]


class Free(Part):
    """θ is any"""

    letter = "Π"
    on_dictionary = False

    def project(self, dictionary: Tensor) -> None:
        """Nothing to do."""

    def tangent(self, dictionary: Tensor, gradient: Tensor) -> None:
        """Nothing to do."""

    def unit(self, h: Tensor) -> Tensor | float:
        return 1.0


class UnitNorm(Part):
    """||v_k|| = 1 for every column v_k of the decoder matrix

    Shrinking the code can't be paid for by growing the decoder, so a penalty on the code means what it says.
    """

    letter = "Π"
    on_dictionary = True

    def project(self, dictionary: Tensor) -> None:
        """v_k <- v_k / ||v_k||, in place; a zero column stays."""
        norm = torch.linalg.vector_norm(dictionary, dim=0)
        dictionary /= torch.where(norm > 0, norm, 1.0)

    def tangent(self, dictionary: Tensor, gradient: Tensor) -> None:
        """g_k <- g_k - v_k (v_k · g_k), in place: the part of the step that would change the norm."""
        gradient.addcmul_(dictionary, torch.linalg.vecdot(dictionary, gradient, dim=0), value=-1)

    def unit(self, h: Tensor) -> Tensor | float:
        return 1.0


class NonNegative(Part):
    """V >= 0: rows are sums of the decoder's columns, never differences

    References
    ----------
    Lee & Seung 1999, "Learning the parts of objects by non-negative matrix factorization".
    """

    letter = "Π"
    on_dictionary = True

    def project(self, dictionary: Tensor) -> None:
        """V <- max(V, 0), in place."""
        dictionary.clamp_(min=0)

    def tangent(self, dictionary: Tensor, gradient: Tensor) -> None:
        """Zero, in place, where a step down the gradient would leave the boundary."""
        gradient.masked_fill_((dictionary <= 0) & (gradient > 0), 0)

    def unit(self, h: Tensor) -> Tensor | float:
        return 1.0


class UnitRMS(Part):
    """mean_n h_k² = 1 for every code unit, in the penalties' eyes

    A deep decoder can undo any scale of the code, so penalties see h_k / rms(h_k) and the derivatives of
    that: no scale is cheaper than another. The weights stay free.
    """

    letter = "Π"
    on_dictionary = False

    def project(self, dictionary: Tensor) -> None:
        """Nothing to do."""

    def tangent(self, dictionary: Tensor, gradient: Tensor) -> None:
        """Nothing to do."""

    def unit(self, h: Tensor) -> Tensor | float:
        return (h.square().mean(0) + torch.finfo(h.dtype).eps).sqrt()
