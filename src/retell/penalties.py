"""Ω, what a good code or good weights should not be: a value per row, or one number.

Where it has one, `slope_h` is the derivative of the value by the code in its units, h / unit (N, K), and
`slope_weights` the one by each weight matrix, for solvers that write gradients out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions import StudentT as TorchStudentT

from retell.activations import Gated, JumpReLU, Sample
from retell.densities import Exponential, Laplace, Normal
from retell.objective import Term
from retell.parts import Part, Pass
from retell.seeds import generator

if TYPE_CHECKING:
    from retell.codec import Codec

__all__ = [
    "KL",
    "L0",
    "L1",
    "L2",
    "AuxK",
    "Contractive",
    "GateL1",
    "GateMSE",
    "L1Weights",
    "Prior",
    "StudentT",
    "ToNormal",
]


class L1(Term):
    """Ω = Σ_k |h_k|

    Codes are sparse where zero is a value they can take (ReLU, TopK, or codes by optimisation). Laplace
    priors on the code give this penalty.
    """

    def __call__(self, p: Pass) -> Tensor:
        return (p.h / p.unit).abs().sum(1)

    def slope_h(self, p: Pass) -> Tensor:
        return torch.sign(p.h)

    def density(self, n_rows: int, n_features: int) -> tuple[Any, str, float]:
        return Laplace(1.0), "code", 1.0


class StudentT(Term):
    """Ω = Σ_k (df + 1) / 2 · log(1 + h_k² / (df scale²))

    With the defaults Σ_k log(1 + h_k²). Student's t prior on the code gives this penalty, and
    ``Prior(StudentT())`` adds its constant; ``Likelihood(StudentT(df, scale))`` has the reconstruction as its
    location.

    Parameters
    ----------
    df : float, default=1.0
        Degrees of freedom, above 0.
    scale : float, default=1.0
        In the scaled space, above 0.

    References
    ----------
    Olshausen & Field 1996, "Emergence of simple-cell receptive field properties by learning a sparse code".
    """

    support: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    signed: ClassVar[bool] = True
    df: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        self.require("df", lambda df: df > 0, "a finite number above 0")
        self.require("scale", lambda s: s > 0, "a finite number above 0")

    def __call__(self, p: Pass) -> Tensor:
        return (self.df + 1) / 2 * torch.log1p((p.h / p.unit / self.scale).square() / self.df).sum(1)

    def slope_h(self, p: Pass) -> Tensor:
        z = p.h / p.unit
        return (self.df + 1) * z / (self.df * self.scale**2 + z.square())

    def slope(self, z: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        off = location - z
        return (self.df + 1) * off / (self.df * scale**2 + off.square())

    def at(self, location: Tensor, scale: Tensor) -> Distribution:
        return TorchStudentT(self.df, location, scale, validate_args=False)

    def mean(self, x_hat: Tensor) -> Tensor:
        return x_hat

    def link(self, mean: Tensor) -> Tensor:
        return mean

    def power(self, rate: float) -> StudentT:
        df = rate * (self.df + 1) - 1
        if df <= 0:
            raise ValueError(f"{self!r} to the power {rate:g} has no finite integral: its coefficient is too small")
        return StudentT(df, self.scale * math.sqrt(self.df / df))

    def penalty(self, on: str, n: int, D: int) -> tuple[str, float] | None:
        return (repr(self), 1.0) if on == "code" else None

    def density(self, n_rows: int, n_features: int) -> tuple[Any, str, float]:
        return self, "code", 1.0


class L2(Term):
    """Ω = Σ_W ||W||_F² / 2

    Over the weight matrices, biases excluded; a matrix that encoder and decoder share counts once.
    Normal priors on the weights give this penalty.
    """

    on_weights: ClassVar[bool] = True

    def __call__(self, p: Pass) -> Tensor:
        return torch.stack([w.square().sum() for w in p.codec.matrices()]).sum() / 2

    def slope_weights(self, p: Pass) -> list[Tensor]:
        return p.codec.matrices()

    def density(self, n_rows: int, n_features: int) -> tuple[Any, str, float]:
        return Normal(1.0), "weights", float(n_rows)


class L1Weights(Term):
    """Ω = Σ_W Σ_ij |W_ij|

    Over the weight matrices, biases excluded; a matrix that encoder and decoder share counts once.
    Laplace priors on the weights give this penalty.
    """

    on_weights: ClassVar[bool] = True

    def __call__(self, p: Pass) -> Tensor:
        return torch.stack([w.abs().sum() for w in p.codec.matrices()]).sum()

    def slope_weights(self, p: Pass) -> list[Tensor]:
        return [torch.sign(w) for w in p.codec.matrices()]

    def density(self, n_rows: int, n_features: int) -> tuple[Any, str, float]:
        return Laplace(1.0), "weights", float(n_rows)


class Prior(Term):
    """Ω = -Σ_k log p(h_k), in nats a row;  on="weights": -log p(θ) / n, its share for each of n rows

    All constants included. A code that can't be negative has the one-sided density 2 p(h): for a Laplace of
    rate λ the constant is then -log λ a unit, not -log(λ / 2). Weights are the matrices, biases excluded.

    Parameters
    ----------
    p : Part
        Normal, Laplace or StudentT; Exponential for codes that can't be negative. With a scale.
    on : {"code", "weights"}, default="code"

    Raises
    ------
    ValueError
        If the density has no scale, or can't be that of such a code: one that is bounded on both sides, or
        for Exponential one that can be negative.

    Examples
    --------
    >>> from retell import Laplace, Prior
    >>> Prior(Laplace(scale=0.1))
    Prior(Laplace(scale=0.1))
    """

    p: Part
    on: str = "code"

    def __post_init__(self) -> None:
        if getattr(self.p, "signed", None) is None:
            raise ValueError(f"a prior needs a density of real numbers, such as Laplace(0.1), got {self.p!r}")
        if getattr(self.p, "scale", None) is None:
            raise ValueError(f"a prior needs a scale, as in {type(self.p).__name__}(scale=0.1), got {self.p!r}")
        if self.on not in ("code", "weights"):
            raise ValueError(f"Prior: on must be 'code' or 'weights', got {self.on!r}")
        if self.on == "weights" and isinstance(self.p, Exponential):
            raise ValueError(f"weights can be negative and {self.p!r} can't: use Laplace")

    def check(self, codec: Codec) -> None:
        low, high = codec.code_activation.range
        if self.on == "weights":
            return
        if high < math.inf or low not in (0, -math.inf):
            raise ValueError(
                f"{self!r} is a density over all codes, but {codec.code_activation!r} gives codes in ({low:g},"
                f" {high:g}) only: use an unbounded code such as Identity() or ReLU()"
            )
        if isinstance(self.p, Exponential) and low < 0:
            raise ValueError(
                f"{self!r} is for codes that can't be negative, but {codec.code_activation!r} gives any: use Laplace"
            )

    def __call__(self, p: Pass) -> Tensor:
        if self.on == "weights":
            return -torch.stack([self._log_p(w).sum() for w in p.codec.matrices()]).sum() / p.codec.n_rows
        one_sided = self.p.signed and p.codec.code_activation.range[0] == 0  # type: ignore[attr-defined]
        return -(self._log_p(p.h / p.unit) + (math.log(2) if one_sided else 0.0)).sum(1)

    def slope_h(self, p: Pass) -> Tensor:
        return self._slope(p.h / p.unit)

    def slope_weights(self, p: Pass) -> list[Tensor]:
        return [self._slope(w) / p.codec.n_rows for w in p.codec.matrices()]

    @property
    def on_weights(self) -> bool:  # type: ignore[override]  # of each prior, not of the class
        return self.on == "weights"

    def _slope(self, z: Tensor) -> Tensor:
        """By z, which is the other way round than by the location."""
        density: Any = self.p
        slope: Tensor = -density.slope(z, torch.zeros_like(z), z.new_tensor(density.scale))
        return slope

    def _log_p(self, z: Tensor) -> Tensor:
        density: Any = self.p
        log_p: Tensor = density.at(torch.zeros_like(z), z.new_tensor(density.scale)).log_prob(z)
        return log_p

    def density(self, n_rows: int, n_features: int) -> tuple[Any, str, float]:
        return self.p, self.on, 1.0


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

    def slope_h(self, p: Pass) -> Tensor:
        mean, tiny = p.h.mean(0), torch.finfo(p.h.dtype).eps
        on = mean.clamp(tiny, 1 - tiny)
        slope = ((1 - self.rho) / (1 - on) - self.rho / on) * (on == mean)
        return (slope / len(p.h)).expand_as(p.h)

    def __call__(self, p: Pass) -> Tensor:
        self.check(p.codec)
        tiny = torch.finfo(p.h.dtype).eps
        on = p.h.mean(0).clamp(tiny, 1 - tiny)
        return (self.rho * torch.log(self.rho / on) + (1 - self.rho) * torch.log((1 - self.rho) / (1 - on))).sum()


class ToNormal(Term):
    """Ω = KL(N(m, s²) || N(0, 1)) = Σ_k (m_k² + s_k² - 1) / 2 - log s_k

    With ``Likelihood(Normal())`` the objective is the negative of the evidence lower bound (ELBO), in nats a
    row, right to the constant.

    Raises
    ------
    ValueError
        If the code is not drawn: it needs `Sample`.

    References
    ----------
    Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix B.
    """

    def check(self, codec: Codec) -> None:
        if not isinstance(codec.code_activation, Sample):
            raise ValueError(
                f"{self!r} compares the distribution of a drawn code with the Normal, but {codec.code_activation!r}"
                " gives one value: use code_activation='Sample()'"
            )

    def __call__(self, p: Pass) -> Tensor:
        return self.by_unit(p).sum(1)

    def by_unit(self, p: Pass) -> Tensor:
        """The divergence of each unit (N, K), in nats."""
        m, log_s = p.codec.code_activation.moments(p.a)
        divergence: Tensor = (m.square() + (2 * log_s).exp() - 1) / 2 - log_s
        return divergence


class L0(Term):
    """Ω = Σ_k [h_k ≠ 0],  with the gradient of JumpReLU's window

    The count has no derivative; the threshold's is that of a window around the jump, of the pre-activations
    on both sides of it.

    Raises
    ------
    ValueError
        If the code has no window: it needs `JumpReLU`.

    References
    ----------
    Rajamanoharan et al. 2024, "Jumping Ahead", equation 12.
    """

    surrogate: ClassVar[tuple[str, ...]] = ("threshold",)

    def check(self, codec: Codec) -> None:
        if not isinstance(getattr(codec.code_activation, "part", None), JumpReLU):
            raise ValueError(
                f"{self!r} counts active units, which has a gradient only for JumpReLU(), not for"
                f" {codec.code_activation!r}: use L1() or code_activation='JumpReLU()'"
            )

    def __call__(self, p: Pass) -> Tensor:
        squash = p.codec.code_activation
        active: Tensor = squash.part.active(p.a, squash)
        return active.sum(1)


class GateL1(Term):
    """Ω = Σ_k max(a_k, 0), on what opens the gates of a `Gated` code

    Raises
    ------
    ValueError
        If the code is not Gated.

    References
    ----------
    Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders", equation 8.
    """

    def check(self, codec: Codec) -> None:
        _check_gated(self, codec)

    def __call__(self, p: Pass) -> Tensor:
        return torch.relu(p.a).sum(1)


class GateMSE(Term):
    """Ω = ||x - g*(max(a, 0))||² / D,  g* the decoder, held still

    The gates alone should reconstruct; only they learn from it, the decoder does not.

    Raises
    ------
    ValueError
        If the code is not Gated, or the decoder is deep.

    References
    ----------
    Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders", equation 8.
    """

    subtracts: ClassVar[bool] = True

    surrogate: ClassVar[tuple[str, ...]] = ("decoder",)

    def check(self, codec: Codec) -> None:
        _check_gated(self, codec)
        _check_linear(self, codec)

    def __call__(self, p: Pass) -> Tensor:
        g = p.codec.decoder
        x_hat = torch.nn.functional.linear(torch.relu(p.a), g.last.weight.detach(), g.bias.detach())
        return ((p.x - x_hat).square() * p.seen).mean(1)


class AuxK(Term):
    """Ω = ||e - V z||² / D,  e = x - x̂ held still, z the k largest a among the dead units, negative ones too

    Units that have not been active for `rows` rows learn to reconstruct what the others leave, encoder and
    decoder both: rectified, a unit that is below 0 for every row could never come back. The residual is a
    given: the live units are not pulled. No bias is added, e has none. 0 while no unit is dead.

    Parameters
    ----------
    k : int, default=32
        How many dead units of a row take part, at least 1.
    rows : int, default=10000
        Rows without activity after which a unit counts as dead, at least 1.

    Raises
    ------
    ValueError
        If the code is not sparse (TopK, BatchTopK, JumpReLU), or the decoder is deep.

    References
    ----------
    Gao et al. 2024, "Scaling and evaluating sparse autoencoders", section 2.4.
    """

    subtracts: ClassVar[bool] = True
    counts_idle: ClassVar[bool] = True

    k: int = 32
    rows: int = 10_000

    def __post_init__(self) -> None:
        self.require("k", lambda k: k >= 1 and int(k) == k, "a whole number, at least 1")
        self.require("rows", lambda n: n >= 1, "at least 1")

    def check(self, codec: Codec) -> None:
        if not codec.code_activation.sparse:
            raise ValueError(
                f"{self!r} revives dead units of a sparse code, and {codec.code_activation!r} is none: use"
                " code_activation='TopK(8)'"
            )
        _check_linear(self, codec)

    def __call__(self, p: Pass) -> Tensor:
        dead = p.codec.idle >= self.rows
        most = torch.topk(p.a.masked_fill(~dead, -math.inf), min(int(self.k), p.a.shape[1]), dim=1)
        z = torch.zeros_like(p.a).scatter(1, most.indices, most.values.masked_fill(most.values == -math.inf, 0.0))
        e = (p.x - p.x_hat).detach()
        missed = (e - torch.nn.functional.linear(z, p.codec.decoder.last.weight)).square() * p.seen
        return missed.mean(1) * dead.any()


class Contractive(Term):
    """Ω = ||∂h/∂x||_F²  or, of="reconstruction", ||∂x̂/∂x||_F²,  at the scaled, uncorrupted x

    It is never zero for want of a graph: evaluation computes it too. A drawn code is its mean here.

    Parameters
    ----------
    of : {"code", "reconstruction"}, default="code"
        What should not move. x̂ is the decoder's output, before the loss's link.
    method : {"auto", "exact", "projection"}, default="auto"
        "exact" is the whole Jacobian: in closed form where one affine map and an elementwise σ make the code,
        else by one batched backward pass of K (or D) directions, memory N x K x D. "projection" is
        Hutchinson's estimate, ||vᵀJ||² with one v of random signs a row: unbiased, one backward pass; `variance`
        says how it scatters. "auto" is exact in closed form and up to 64 directions, else projection.

    References
    ----------
    Rifai et al. 2011, "Contractive Auto-Encoders: Explicit Invariance During Feature Extraction"; of the
    reconstruction, Alain & Bengio 2014, "What regularized auto-encoders learn from the data-generating
    distribution"; Hutchinson 1990.
    """

    of: str = "code"
    method: str = "auto"

    def __post_init__(self) -> None:
        if self.of not in ("code", "reconstruction"):
            raise ValueError(f"Contractive: of must be 'code' or 'reconstruction', got {self.of!r}")
        if self.method not in ("auto", "exact", "projection"):
            raise ValueError(f"Contractive: method must be 'auto', 'exact' or 'projection', got {self.method!r}")

    def __call__(self, p: Pass) -> Tensor:
        learning = torch.is_grad_enabled()
        with torch.enable_grad():
            value = self._norms(p)
        return value if learning else value.detach()

    def closed(self, codec: Codec) -> bool:
        """Whether there is a closed form: one affine map and an elementwise σ make the code."""
        elementwise = getattr(codec.code_activation, "elementwise", False)  # one of the user's own may not say
        return self.of == "code" and self.method != "projection" and not codec.encoder.deep and elementwise

    def slopes(self, p: Pass) -> tuple[Tensor, Tensor]:
        """In closed form, with a unit of 1: the derivatives of the rows' sum by a (N, K) and by W (K, D)."""
        squash, W = p.codec.code_activation, p.codec.encoder.last.weight
        slope, bend = squash.pull(torch.ones_like(p.a), p.a, p.h), squash.bend(p.a, p.h)
        return 2 * slope * bend * W.square().sum(1), 2 * W * slope.square().sum(0)[:, None]

    def variance(self, p: Pass, draws: int = 16) -> Tensor:
        """The variance (N,) of one draw of the projection, from several; 0 where the method is exact.

        Parameters
        ----------
        p : Pass
        draws : int, default=16
            At least 2.
        """
        p = p if p.generator is not None else p._replace(generator=generator(0, device=p.x.device))
        return torch.stack([self(p).detach() for _ in range(draws)]).var(0)

    def _norms(self, p: Pass) -> Tensor:
        codec, of_code = p.codec, self.of == "code"
        x = p.x.detach().requires_grad_()
        a = codec.encoder(x)
        h = codec.code_activation(a)
        unit = torch.as_tensor(p.unit).to(h)
        if self.closed(codec):
            (slope,) = torch.autograd.grad(h.sum(), a, create_graph=True)
            sizes = (slope[:, : h.shape[1]] / unit).square()
            closed: Tensor = sizes @ codec.encoder.last.weight[: h.shape[1]].square().sum(1)
            return closed
        y = h / unit if of_code else codec.decode(h)
        if self.method == "projection" or (self.method == "auto" and y.shape[1] > 64):
            draw = p.generator if p.generator is not None else generator(0, device=x.device)
            signs = torch.empty_like(y).uniform_(generator=draw).sub_(0.5).sign_()
            (back,) = torch.autograd.grad(y, x, signs, create_graph=True)
            estimate: Tensor = back.square().sum(1)
            return estimate
        n, k = y.shape
        directions = torch.eye(k, dtype=y.dtype, device=y.device)[:, None, :].expand(k, n, k)
        (jacobian,) = torch.autograd.grad(y, x, directions, is_grads_batched=True, create_graph=True)
        whole: Tensor = jacobian.square().sum((0, 2))
        return whole


def _check_gated(term: Term, codec: Codec) -> None:
    if not isinstance(getattr(codec.code_activation, "part", None), Gated):
        raise ValueError(
            f"{term!r} is about the gates of a code, and {codec.code_activation!r} has none: use"
            " code_activation='Gated()'"
        )


def _check_linear(term: Term, codec: Codec) -> None:
    if codec.decoder.deep:
        raise ValueError(f"{term!r} needs a linear decoder: use decoder_hidden_layer_sizes=()")
