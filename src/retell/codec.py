"""x̂ = g(f(x)): the network, from rows to a `Pass`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from retell.networks import Net
from retell.parts import Corrupted, Pass

__all__ = ["Codec"]


class Codec(nn.Module):
    """h = σ(f(x)), x̂ = g(h), in the scaled space.

    Parameters
    ----------
    encoder, decoder : Net
        f (D -> K) and g (K -> D).
    code_activation : Part
        σ, already bound to K units.
    centre : Tensor of shape (D,)
        What the encoder reads where a cell was not seen.
    learns_scale : bool, default=False
        Whether there is a `log_scale`, for a likelihood that learns its noise.

    Attributes
    ----------
    log_scale : Parameter or None
        Logarithm of the noise's scale, one number.
    idle : Tensor of shape (K,)
        Rows that the solver has seen since each unit was last active, where a term asks for it (`AuxK`).
    rms : Tensor of shape (K,)
        Root mean square of each unit over the training rows; 1 until a fit has ended.
    n_rows : Tensor, one number
        How many rows share a prior on the weights; 1 until a fit says otherwise.

    Examples
    --------
    >>> import torch
    >>> from retell import Codec, Identity, mirror, mlp
    >>> f = mlp([4, 2])
    >>> codec = Codec(f, Identity(), mirror(f, tied=True), torch.zeros(4))
    >>> with torch.no_grad():
    ...     _ = f.layers[0].weight.copy_(torch.eye(2, 4))
    ...     for layer in codec.affines():
    ...         _ = layer.bias.zero_()
    ...     codec(torch.tensor([[1.0, 2.0, 3.0, float("nan")]])).x_hat
    tensor([[1., 2., 0., 0.]])
    """

    centre: Tensor
    idle: Tensor
    rms: Tensor
    n_rows: Tensor

    def __init__(
        self, encoder: Net, code_activation: Any, decoder: Net, centre: Tensor, *, learns_scale: bool = False
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.code_activation = code_activation
        self.decoder = decoder
        self.register_buffer("centre", centre, persistent=False)
        self.register_buffer("idle", torch.zeros(self.n_units))
        self.register_buffer("rms", torch.ones(self.n_units))
        self.log_scale = nn.Parameter(torch.zeros(())) if learns_scale else None
        self.register_buffer("n_rows", torch.ones(()))

    def fill(self, x: Tensor) -> Tensor:
        """x with the centre in unseen cells."""
        return torch.where(torch.isnan(x), self.centre, x)

    def encode(self, x: Tensor) -> Tensor:
        """h = σ(f(x)); NaN is an unseen cell."""
        h: Tensor = self.code_activation(self.encoder(self.fill(x)))
        return h

    def decode(self, h: Tensor) -> Tensor:
        """x̂ = g(h), before the loss's link."""
        x_hat: Tensor = self.decoder(h)
        return x_hat

    def forward(self, x: Tensor, corrupted: Corrupted | None = None, generator: Generator | None = None) -> Pass:
        """The pass of x, encoded from its corrupted copy if there is one; with a generator codes are drawn."""
        read, rows = self.reads(x, corrupted)
        a = self.encoder(read)
        drawn = generator is not None and hasattr(self.code_activation, "sample")
        h = self.code_activation.sample(a, generator) if drawn else self.code_activation(a)
        return Pass(self, *rows, a, h, self.decode(h), generator)

    def reads(
        self, x: Tensor, corrupted: Corrupted | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """What the encoder reads of x, and the rows' own part of a `Pass`: x, seen, hit, weight."""
        seen = ~torch.isnan(x)
        corrupted = Corrupted(x, torch.zeros_like(seen)) if corrupted is None else corrupted
        if not isinstance(corrupted, Corrupted):
            raise TypeError(f"a corruption gives a retell.Corrupted(x, hit), got {type(corrupted).__name__}")
        read, hit, emphasis = corrupted
        weight = torch.where(hit, emphasis, 1.0).to(x) * seen
        return self.fill(read), (self.fill(x), seen, hit, weight)

    def as_pass(self, x: Tensor, h: Tensor, unit: Tensor | float) -> Pass:
        """The pass of x (N, D) with the codes h (N, K), wherever they come from."""
        seen = ~torch.isnan(x)
        return Pass(self, self.fill(x), seen, ~seen, seen.to(x), h, h, self.decode(h.to(self.centre)), None, unit)

    @torch.no_grad()
    def observe(self, p: Pass, *, idle: bool = True) -> None:
        """Told by the loop, once a step: what is counted is counted here, never inside `forward`."""
        self.code_activation.observe(p)
        if idle:
            self.idle += len(p.h)
            self.idle[(p.h != 0).any(0)] = 0

    def affines(self) -> list[Any]:
        """Every affine map of f and g."""
        return self.encoder.affines() + self.decoder.affines()

    def matrices(self) -> list[Tensor]:
        """The weight matrices, each storage once."""
        return [layer.own for layer in self.affines() if layer.own is not None]

    def dictionary(self) -> Tensor | None:
        """V (D, K) of a linear decoder or of the linear path, a view of its storage; None if there is none."""
        straight = self.decoder.straight
        return None if straight is None else straight.weight

    def dictionary_gradient(self) -> Tensor:
        """The gradient of `dictionary`, a view of its storage."""
        assert self.decoder.straight is not None
        return self.decoder.straight.gradient

    @property
    def n_units(self) -> int:
        """K, the width of the code."""
        return int(self.decoder.affines()[0].weight.shape[1])

    @property
    def n_outputs(self) -> int:
        """The encoder's outputs: one or more for each code unit."""
        return int(self.encoder.last.weight.shape[0])

    @property
    def tied(self) -> bool:
        return any(layer.own is None for layer in self.decoder.affines())
