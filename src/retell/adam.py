"""Adam, as steps in place on lists of tensors, and how long its steps are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Group", "Moments", "adamw", "clip", "further_by", "up_and_down"]

EPSILON = 1e-12


class Group(NamedTuple):
    """Parameters that learn alike."""

    parameters: list[Any]
    share: float
    """Of the learning rate."""
    decay: float


class Moments(NamedTuple):
    """What Adam remembers of a parameter."""

    mean: Tensor
    square: Tensor
    step: Tensor
    """Steps taken."""

    @classmethod
    def of(cls, p: Tensor) -> Moments:
        return cls(torch.zeros_like(p), torch.zeros_like(p), torch.zeros((), device=p.device))


def adamw(
    values: list[Tensor], gradients: list[Any], moments: list[list[Tensor]], rate: float, betas: tuple[float, float],
    group: Group, scale: Tensor | None = None,
) -> None:  # fmt: skip
    """One step in place (Loshchilov & Hutter 2019), by the kernel of `torch.optim.AdamW`; `Moments` side by side,
    whose steps count this one already. Gradients are divided by `scale`, a float32 number, first."""
    means, squares, steps = moments
    torch._fused_adamw_(
        values, gradients, means, squares, [], steps, lr=rate * group.share, beta1=betas[0], beta2=betas[1],
        weight_decay=group.decay, eps=EPSILON, amsgrad=False, maximize=False, grad_scale=scale,
    )  # fmt: skip


@contextmanager
def further_by(alpha: float, p: Tensor) -> Iterator[None]:
    """Whatever p moves inside, it moves so many times as far again in the end."""
    was = p.clone()
    yield
    p.add_(p - was, alpha=alpha)


def clip(gradients: list[Any], most: float) -> None:
    """Scale the gradient, in place, to the norm `most` where it is larger."""
    if most < math.inf:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, (most / norm).clamp(max=1.0))


def up_and_down(at: float, total: float, up: float = 0.1) -> float:
    """What part of the largest learning rate to use at a step of so many: up for a share of the way, then to zero."""
    return max(0.0, min((at + 1) / max(1.0, up * total), (total - at) / ((1 - up) * total)))
