"""Ω, what a good code or good weights should not be: a value per row, or one number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from retell.objective import Term
from retell.parts import Pass

if TYPE_CHECKING:
    from retell.codec import Codec

__all__ = ["KL", "L1", "L2", "Contractive"]


class L1(Term):
    """Ω = Σ_k |h_k|

    Codes are sparse where zero is a value they can take (ReLU, TopK, or codes by optimisation). Laplace
    priors on the code give this penalty.
    """

    def __call__(self, p: Pass) -> Tensor:
        return (p.h / p.unit).abs().sum(1)


class L2(Term):
    """Ω = Σ_W ||W||_F² / 2

    Over the weight matrices, biases excluded; a matrix that encoder and decoder share counts once.
    Normal priors on the weights give this penalty.
    """

    def __call__(self, p: Pass) -> Tensor:
        return torch.stack([w.square().sum() for w in p.codec.matrices()]).sum() / 2


class KL(Term):
    """Ω = Σ_k KL(rho || mean_n h_k),  KL(r || q) = r log(r / q) + (1 - r) log((1 - r) / (1 - q))

    Parameters
    ----------
    rho : float, default=0.05
        How often a unit should be on, in (0, 1).

    Raises
    ------
    ValueError
        If the code does not lie in (0, 1): the penalty acts on the code itself, never on a squashed copy.

    References
    ----------
    Ng 2011, "Sparse autoencoder" (CS294A lecture notes).
    """

    rho: float = 0.05

    def __post_init__(self) -> None:
        self.require("rho", lambda r: 0 < r < 1, "in (0, 1)")

    def check(self, codec: Codec) -> None:
        low, high = codec.code_activation.range
        if low < 0 or high > 1:
            raise ValueError(
                f"{self!r} needs a code in (0, 1), but {codec.code_activation!r} gives codes in "
                f"({low:g}, {high:g}): use code_activation='Sigmoid()'"
            )

    def __call__(self, p: Pass) -> Tensor:
        self.check(p.codec)
        tiny = torch.finfo(p.h.dtype).eps
        on = p.h.mean(0).clamp(tiny, 1 - tiny)
        return (self.rho * torch.log(self.rho / on) + (1 - self.rho) * torch.log((1 - self.rho) / (1 - on))).sum()


class Contractive(Term):
    """Ω = ||∂h/∂x||_F² at the scaled, uncorrupted x

    The exact Jacobian, whatever the depth: one batched backward pass of K directions, memory
    N x K x D. It is never zero for want of a graph: evaluation computes it too.

    References
    ----------
    Rifai et al. 2011, "Contractive Auto-Encoders: Explicit Invariance During Feature Extraction".
    """

    def __call__(self, p: Pass) -> Tensor:
        learning = torch.is_grad_enabled()
        with torch.enable_grad():
            x = p.x.detach().requires_grad_()
            h = p.codec.encode(x)
            n, k = h.shape
            directions = torch.eye(k, dtype=h.dtype, device=h.device)[:, None, :].expand(k, n, k)
            (jacobian,) = torch.autograd.grad(h, x, directions, is_grads_batched=True, create_graph=learning)
            norms = jacobian.square().sum(2)  # (K, N): ||∂h_k/∂x||²
            return (norms.T / torch.as_tensor(p.unit).square()).sum(1)
