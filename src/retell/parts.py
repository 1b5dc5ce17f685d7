"""Ground: what one pass through an autoencoder leaves behind, and what a part of the equation is."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, dataclass_transform

import numpy as np
import torch
from torch import Generator, Tensor, nn

if TYPE_CHECKING:
    from retell.codec import Codec

__all__ = ["Bound", "Corrupted", "Part", "Pass", "part_of"]


class Corrupted(NamedTuple):
    """What a corruption made of some rows.

    Parameters
    ----------
    x : Tensor of shape (N, D)
        x̃; NaN where a cell is hidden.
    hit : Tensor of shape (N, D), bool
        The cells that were drawn to be corrupted, whatever value they were given.
    emphasis : float, default=1.0
        What such a cell counts in the loss, where another counts one.
    """

    x: Tensor
    hit: Tensor
    emphasis: float = 1.0


class Pass(NamedTuple):
    """One batch on its way through the codec, everything in the scaled space.

    N rows, D columns, K code units.

    Parameters
    ----------
    codec : Codec
        The network that made the pass; penalties on weights or derivatives ask it.
    x : Tensor of shape (N, D)
        The rows, uncorrupted; a cell that was not seen holds its column's centre.
    seen : Tensor of shape (N, D), bool
        False where the cell was missing.
    hit : Tensor of shape (N, D), bool
        True where the cell was corrupted before the encoder read it.
    weight : Tensor of shape (N, D)
        What a cell counts in the mean of a loss: 0 where it was not seen, the corruption's emphasis where
        it was hit, else 1.
    a : Tensor of shape (N, K)
        The encoder's output before the code activation; (N, 2 K) where that takes two numbers a unit.
    h : Tensor of shape (N, K)
        The code, h = σ(a).
    x_hat : Tensor of shape (N, D)
        The decoder's output; a loss's `mean` turns it into a reconstruction.
    generator : torch.Generator or None
        The private source of randomness, for parts that draw.
    unit : Tensor of shape (K,) or float
        What counts as one for each code unit when a penalty measures it: 1, or the unit's root mean
        square where the decoder could undo any scale (see `UnitRMS`).
    """

    codec: Codec
    x: Tensor
    seen: Tensor
    hit: Tensor
    weight: Tensor
    a: Tensor
    h: Tensor
    x_hat: Tensor
    generator: Generator | None = None
    unit: Tensor | float = 1.0


@dataclass_transform(frozen_default=True)
class Part:
    """One member of one letter of the equation: a frozen value whose repr rebuilds it.

    A subclass becomes a frozen dataclass by itself; it names the letter it stands for and defines that
    letter's method. It is not subclassed further.

    Attributes
    ----------
    letter : str
        "C" corruption, "σ" code activation, "L" data term, "Ω" penalty, "Π" constraint, "λ" schedule,
        "p" density.

    Examples
    --------
    >>> from retell import Part
    >>> class Halve(Part):
    ...     "h = s a"
    ...     letter = "σ"
    ...     range = (-float("inf"), float("inf"))
    ...     sparse = False
    ...     s: float = 0.5
    ...     def __call__(self, a):
    ...         return self.s * a
    >>> Halve(0.25)
    Halve(s=0.25)
    """

    letter: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True, repr=False)(cls)

    def __repr__(self) -> str:
        words = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, field.name)
            value = value.item() if isinstance(value, np.generic) else value
            if field.default is dataclasses.MISSING:
                words.append(repr(value))
            elif value != field.default:
                words.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(words)})"

    def bind(self, width: int) -> Any:
        """The part as used by one network of `width` units: itself, or a module if it learns or counts.

        Raises
        ------
        ValueError
            If the part can't work at this width.
        """
        return self

    def observe(self, p: Pass) -> None:
        """Told by the loop, once a step, for parts that count; never called inside `forward`."""

    def require(self, name: str, holds: Callable[[Any], bool], expected: str) -> None:
        """Raise ValueError unless the argument `name` is a number for which `holds`."""
        value = getattr(self, name)
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not (number and abs(value) <= sys.float_info.max and holds(value)):
            raise ValueError(f"{type(self).__name__}: {name} must be {expected}, got {value!r}")


class Bound(nn.Module):
    """A code activation with what one network learns or counts for it.

    The part stays a value: it says how to make a code with `code(a, own)` and what to count with
    `count(p, own)`, where `own` is this module.

    Parameters
    ----------
    part : Part
    **own : Parameter or Tensor
        Parameters are learned by the solver, other tensors are counted by the part.
    """

    def __init__(self, part: Any, **own: Tensor) -> None:
        super().__init__()
        for name, value in own.items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)
        self.part = part

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "part" not in self.__dict__:
                raise
            return getattr(self.part, name)

    def forward(self, a: Tensor) -> Tensor:
        h: Tensor = self.part.code(a, self)
        return h

    @torch.no_grad()
    def observe(self, p: Pass) -> None:
        """Told by the loop, once a step."""
        self.part.count(p, self)

    def __repr__(self) -> str:
        return repr(self.part)


def part_of(squash: Any) -> Any:
    """A code activation as the value that it was written as, bound or not."""
    return squash.part if isinstance(squash, Bound) else squash
