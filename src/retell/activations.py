"""σ, the code activation: h = σ(a).

`range` is the open interval that the code lies in; `sparse` says that most of the code is exactly zero;
`elementwise` that h_k moves with a_k alone, almost everywhere, so that its Jacobian is diagonal. Where it has
them, `pull` takes a gradient by h to that by a, and `bend` is the second derivative, for solvers that write
gradients out.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from retell.notice import warn
from retell.parts import Bound, Part, Pass

__all__ = [
    "BatchTopK",
    "Gated",
    "Identity",
    "JumpReLU",
    "ReLU",
    "Sample",
    "Sigmoid",
    "Softplus",
    "Tanh",
    "TopK",
]


class Identity(Part):
    """h = a"""

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    sparse: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True

    def __call__(self, a: Tensor) -> Tensor:
        return a

    def pull(self, d: Tensor, a: Tensor, h: Tensor) -> Tensor:
        return d

    def bend(self, a: Tensor, h: Tensor) -> Tensor:
        return torch.zeros_like(a)


class ReLU(Part):
    """h = max(a, 0)"""

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    sparse: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True

    def __call__(self, a: Tensor) -> Tensor:
        return torch.relu(a)

    def pull(self, d: Tensor, a: Tensor, h: Tensor) -> Tensor:
        return _where_active(d, h)

    def bend(self, a: Tensor, h: Tensor) -> Tensor:
        return torch.zeros_like(a)


class Sigmoid(Part):
    """h = 1 / (1 + exp(-a))"""

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    sparse: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True

    def __call__(self, a: Tensor) -> Tensor:
        return torch.sigmoid(a)

    def pull(self, d: Tensor, a: Tensor, h: Tensor) -> Tensor:
        return d * h * (1 - h)

    def bend(self, a: Tensor, h: Tensor) -> Tensor:
        return h * (1 - h) * (1 - 2 * h)


class Tanh(Part):
    """h = tanh(a)"""

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    sparse: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True

    def __call__(self, a: Tensor) -> Tensor:
        return torch.tanh(a)

    def pull(self, d: Tensor, a: Tensor, h: Tensor) -> Tensor:
        return d * (1 - h.square())

    def bend(self, a: Tensor, h: Tensor) -> Tensor:
        return -2 * h * (1 - h.square())


class Softplus(Part):
    """h = log(1 + exp(a))"""

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    sparse: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True

    def __call__(self, a: Tensor) -> Tensor:
        return torch.nn.functional.softplus(a)

    def pull(self, d: Tensor, a: Tensor, h: Tensor) -> Tensor:
        return d * torch.sigmoid(a)

    def bend(self, a: Tensor, h: Tensor) -> Tensor:
        return torch.sigmoid(a) * torch.sigmoid(-a)


class TopK(Part):
    """h_j = a_j if a_j is among the k largest of its row and above `least`, else 0

    Parameters
    ----------
    k : int
        How many units of a row may be active, at least 1. A code of fewer units keeps them all, with a warning.
    least : float, default=0.0
        What an active unit is above, at least 0. `target_fvu` and `target_l0` may set one: a row then has fewer than k
        active units where few explain it.

    References
    ----------
    Makhzani & Frey 2013, "k-Sparse Autoencoders"; with the ReLU of Gao et al. 2024.

    Examples
    --------
    >>> import torch
    >>> from retell import TopK
    >>> TopK(1)(torch.tensor([[1.0, 3.0], [-1.0, -2.0]]))
    tensor([[0., 3.],
            [0., 0.]])
    >>> TopK(2, least=1.5)(torch.tensor([[1.0, 3.0], [2.0, 4.0]]))
    tensor([[0., 3.],
            [2., 4.]])
    """

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    sparse: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    k: int
    least: float = 0.0

    def __post_init__(self) -> None:
        self.require("k", _whole, "a whole number, at least 1")
        self.require("least", lambda t: t >= 0, "a finite number, at least 0")

    def bind(self, width: int) -> TopK:
        """The part itself; where the code has fewer than k units, one that keeps them all, with a warning."""
        return TopK(_at_most(self, width), self.least)

    def __call__(self, a: Tensor) -> Tensor:
        values, indices = torch.topk(a, int(self.k), dim=-1)
        return torch.zeros_like(a).scatter(-1, indices, functional.threshold(values, self.least, 0.0))

    def pull(self, d: Tensor, a: Tensor, h: Tensor) -> Tensor:
        return _where_active(d, h)

    def bend(self, a: Tensor, h: Tensor) -> Tensor:
        return torch.zeros_like(a)


class BatchTopK(Part):
    """h = max(a, 0) where a is among the k N largest of a batch of N rows, else 0

    While training, the rows of a batch share k active units a row on average. A row alone is coded with a
    threshold, h = max(a, 0) where a >= θ: while training, θ is the mean over batches of the least active value; after
    it, a value that leaves k units active a row on average of a sample of the rows.

    Parameters
    ----------
    k : int
        Active units of a row on average, at least 1. A code of fewer units keeps them all, with a warning.

    References
    ----------
    Bussmann et al. 2024, "BatchTopK Sparse Autoencoders".
    """

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    sparse: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    k: int

    def __post_init__(self) -> None:
        self.require("k", _whole, "a whole number, at least 1")

    def bind(self, width: int) -> Bound:
        """With the threshold (a number) and how many batches it has seen."""
        return Bound(BatchTopK(_at_most(self, width)), threshold=torch.zeros(()), batches=torch.zeros(()))

    def code(self, a: Tensor, own: Bound) -> Tensor:
        least: Tensor = own.threshold
        if own.training:
            least = torch.topk(a.detach().flatten(), int(self.k) * len(a)).values[-1]
        return torch.relu(a) * (a >= least)

    def pull(self, d: Tensor, a: Tensor, h: Tensor) -> Tensor:
        return _where_active(d, h)

    def bend(self, a: Tensor, h: Tensor) -> Tensor:
        return torch.zeros_like(a)

    def count(self, p: Pass, own: Bound) -> None:
        """θ <- the mean of the first hundred batches' least active values, then of the last hundred or so."""
        active = p.h > 0
        self.settle(torch.where(active, p.h, math.inf).amin() if active.any() else None, own)

    def settle(self, least: Tensor | None, own: Bound) -> None:
        """Count a batch by its least active value; None where nothing was active."""
        threshold: Tensor = own.threshold
        batches: Tensor = own.batches
        batches += 1
        if least is not None:
            threshold += (least - threshold) / batches.clamp(max=100)


class JumpReLU(Part):
    """h = a if a > θ else 0,  θ learned for each unit

    The derivatives with respect to θ are zero or infinite; in their place stand those of a window of width
    `bandwidth` around the jump: ∂h/∂θ = -(θ / bandwidth) [|a - θ| < bandwidth / 2]. θ below 0 counts as 0.

    Parameters
    ----------
    threshold : float, default=0.05
        θ before the first step, at least 0.
    bandwidth : float, default=0.05
        Width of the window, above 0.

    References
    ----------
    Rajamanoharan et al. 2024, "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse
    Autoencoders", equations 11 and 12.
    """

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    sparse: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    surrogate: ClassVar[tuple[str, ...]] = ("threshold",)
    threshold: float = 0.05
    bandwidth: float = 0.05

    def __post_init__(self) -> None:
        self.require("threshold", lambda t: t >= 0, "a finite number, at least 0")
        self.require("bandwidth", lambda b: b > 0, "a finite number above 0")

    def bind(self, width: int) -> Bound:
        """With a threshold (K,) for each unit."""
        return Bound(self, threshold=nn.Parameter(torch.full((width,), float(self.threshold))))

    def code(self, a: Tensor, own: Bound) -> Tensor:
        step = self.active(a, own)
        # value a · step; the jump's gradient comes from step alone, times θ and not a
        h: Tensor = a * step.detach() + own.threshold.detach().clamp(min=0) * (step - step.detach())
        return h

    def active(self, a: Tensor, own: Bound) -> Tensor:
        """[a > θ] (N, K); its derivative with respect to θ is that of the window, -[|a - θ| < ε / 2] / ε."""
        step: Tensor = _Step.apply(a, own.threshold, self.bandwidth)  # type: ignore[no-untyped-call]
        return step

    def count(self, p: Pass, own: Bound) -> None:
        """Nothing to count."""


class _Step(torch.autograd.Function):
    """[a > θ], with the window's derivative for θ and none for a."""

    @staticmethod
    def forward(ctx, a, threshold, bandwidth):  # type: ignore[no-untyped-def]
        off = a - threshold.clamp(min=0)
        ctx.save_for_backward((off.abs() < bandwidth / 2).to(a))
        ctx.bandwidth = bandwidth
        return (off > 0).to(a)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (window,) = ctx.saved_tensors
        return None, -(gradient * window).sum(0) / ctx.bandwidth, None


class Gated(Part):
    """h = [a > 0] · max(exp(r) a + b, 0),  r and b learned for each unit

    One map decides which units are active, the same map, stretched and shifted, how much. The gate learns
    from `GateL1` and `GateMSE`.

    References
    ----------
    Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders".
    """

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    sparse: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def bind(self, width: int) -> Bound:
        """With r and b, (K,) each."""
        return Bound(self, stretch=nn.Parameter(torch.zeros(width)), shift=nn.Parameter(torch.zeros(width)))

    def code(self, a: Tensor, own: Bound) -> Tensor:
        size: Tensor = torch.relu(own.stretch.exp() * a + own.shift)
        return (a > 0) * size

    def count(self, p: Pass, own: Bound) -> None:
        """Nothing to count."""


class Sample(Part):
    """h = m + s · e,  e ~ N(0, 1),  (m, log s) = a

    A stochastic code: the encoder gives each unit a mean and a log standard deviation. While training the
    code is drawn; elsewhere it is m. With ``Likelihood(Normal()) + ToNormal()`` this is the variational
    autoencoder.

    References
    ----------
    Kingma & Welling 2014, "Auto-Encoding Variational Bayes".
    """

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    sparse: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True
    outputs: ClassVar[int] = 2
    """Numbers that the encoder gives for each unit."""

    def __call__(self, a: Tensor) -> Tensor:
        return self.moments(a)[0]

    def sample(self, a: Tensor, generator: Generator) -> Tensor:
        """The code (N, K), drawn."""
        m, log_s = self.moments(a)
        return m + log_s.exp() * torch.empty_like(m).normal_(generator=generator)

    def moments(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """m and log s (N, K); log s within ±10, beyond which no float32 code could tell."""
        m, log_s = a.chunk(2, dim=-1)
        return m, log_s.clamp(-10, 10)


def _where_active(d: Tensor, h: Tensor) -> Tensor:
    """d where h > 0, else 0, in one call."""
    active: Tensor = torch.ops.aten.threshold_backward(d, h, 0.0)
    return active


def _whole(k: float) -> bool:
    return k >= 1 and int(k) == k


def _at_most(part: TopK | BatchTopK, width: int) -> int:
    """k, or with a warning the code's width where that is less."""
    if part.k <= width:
        return int(part.k)
    warn(f"{part!r} keeps all {width} units of this code: lower k or raise n_components")
    return width
