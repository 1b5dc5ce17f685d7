"""A data-aware first θ: it matters more than any penalty.

The linear path (or a linear net) starts at PCA's solution, the nonlinear path beside it at zero output,
so the whole net starts as PCA. Where PCA's axes are no help (see `auto.far`), the dictionary is a
random frame of unit vectors and the encoder its transpose, scaled to fit the rows. Biases take the means:
the decoder's is the columns' mean, the encoder's -W times that.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from retell.activations import BatchTopK, Identity, ReLU
from retell.codec import Codec
from retell.dials import Aim, many, settle
from retell.networks import Affine, Net
from retell.objective import mean
from retell.parts import part_of

__all__ = ["counts", "fill_random", "fill_start", "observe"]

CELLS = 2**22  # of codes that are looked at at once


@torch.no_grad()
def fill_start(
    codec: Codec, x: Tensor, axes: Tensor, loss: Any, generator: Generator, *, from_rows: bool = False
) -> None:
    """Fill every weight from the data.

    Parameters
    ----------
    codec : Codec
        Its weights are empty; they are written in place.
    x : Tensor of shape (N, D)
        Scaled rows, NaN where unseen; a sample of them if there are many.
    axes : Tensor of shape (D, K) or (D, 0), float64
        PCA's components of x, or none where they are no help: the frame is then random.
    loss : Term
        The data term: its link takes the mean to the decoder's bias.
    generator : torch.Generator
    from_rows : bool, default=False
        Where the axes are no help: the frame is of rows less their mean, or of differences of two where σ does not
        choose among the units, not of any directions.
    """
    for net in (codec.encoder, codec.decoder):
        _fill_hidden(net, generator)
    width, n_units = len(codec.centre), codec.n_units
    filled = codec.fill(x)
    aware = axes.shape[1] == n_units
    frame = axes
    if not aware:
        frame = (
            _frame_of_rows(filled, n_units, generator, pairs=not codec.code_activation.sparse)
            if from_rows
            else _random_frame(width, n_units, generator)
        )
    frame = frame.to(codec.centre)
    filled = _few(filled, n_units)
    encoder, decoder = codec.encoder.straight, codec.decoder.straight
    bent = not codec.tied and not torch.equal(loss.link(filled), filled)
    if encoder is not None:
        encoder.weight.zero_()[:n_units].copy_(_scaled(frame, filled - codec.centre, codec, bent=bent).T)
    if decoder is not None and not codec.tied:
        decoder.weight.copy_(frame)
    drawn = hasattr(codec.code_activation, "sample")
    spread = _probabilistic(codec, frame, filled - codec.centre, loss) if drawn and aware else None
    _fill_biases(codec, filled, loss)
    if from_rows:
        _thin(codec, filled, loss)
    if spread is not None:
        codec.encoder.bias[n_units:] = spread
    bent = bent or not isinstance(codec.code_activation, Identity)
    if decoder is not None and not codec.tied and aware and bent and spread is None:
        _fit_decoder(codec, decoder, filled, loss)
    _bound(codec, filled)


@torch.no_grad()
def fill_random(codec: Codec, loss: Any, generator: Generator) -> None:
    """Fill every weight at random, N(0, 1 / n_in), with no look at the rows but for their mean."""
    for layer in codec.affines():
        if layer.own is not None:
            layer.own.normal_(generator=generator).div_(math.sqrt(layer.own.shape[1]))
    _fill_biases(codec, codec.centre[None], loss)


def counts(codec: Codec) -> bool:
    """Whether σ counts something."""
    return isinstance(codec.code_activation, torch.nn.Module) and any(True for _ in codec.code_activation.buffers())


@torch.no_grad()
def observe(codec: Codec, x: Tensor) -> None:
    """Let σ count afresh what it counts, on rows (N, D) alone: thresholds, before the first step and after the last.

    BatchTopK's is half-way to the largest value that is not active: rounding does not decide about these rows.
    """
    squash: Any = codec.code_activation
    for counted in squash.buffers():
        counted.zero_()
    p = codec.train()(_few(x, codec.n_units).to(codec.centre))
    squash.observe(p)
    codec.train(False)
    if isinstance(part_of(squash), BatchTopK):
        below = torch.where(p.a < squash.threshold, p.a, 0.0).amax().clamp(min=0)
        squash.threshold.copy_((squash.threshold + below) / 2)


def _few(x: Tensor, n_units: int) -> Tensor:
    """As many evenly spaced rows as codes can be held of."""
    return x[:: -(-len(x) // max(64, CELLS // n_units))]


def _fill_hidden(net: Net, generator: Generator) -> None:
    """Orthogonal hidden layers that keep a row's length; a zero last one, so that the path starts silent."""
    layers: list[Affine] = [layer for layer in net.affines() if layer is not net.straight]
    for layer in layers:
        if layer.own is not None:
            n_out, n_in = layer.own.shape
            frame = torch.empty(max(n_out, n_in), min(n_out, n_in), dtype=torch.float64).normal_(generator=generator)
            frame = torch.linalg.qr(frame)[0] * math.sqrt(max(1.0, n_out / n_in))
            layer.own.copy_(frame if n_out >= n_in else frame.T)
    if net.linear is not None and layers[-1].own is not None:
        layers[-1].own.zero_()


def _bound(codec: Codec, x: Tensor) -> None:
    """Clip the nonlinear paths to the range of these rows and of their first codes, in units of order 1."""
    h = codec.encode(x)
    if codec.encoder.linear is not None:
        codec.encoder.low.copy_(x.amin(0))
        codec.encoder.high.copy_(x.amax(0))
        codec.encoder.out.copy_(_rms(h - h.mean(0)))
    if codec.decoder.linear is not None:
        codec.decoder.into.copy_(1 / _rms(h - h.mean(0)))
        codec.decoder.low.copy_((codec.decoder.into * h).amin(0))
        codec.decoder.high.copy_((codec.decoder.into * h).amax(0))


def _rms(h: Tensor) -> Tensor:
    size = h.square().mean().sqrt()
    return torch.where(size > 0, size, 1.0)


def _random_frame(width: int, n_units: int, generator: Generator) -> Tensor:
    """Unit vectors (D, K)."""
    frame = torch.empty(width, n_units, dtype=torch.float64).normal_(generator=generator)
    unit: Tensor = frame / torch.linalg.vector_norm(frame, dim=0)
    return unit


def _thin(codec: Codec, few: Tensor, loss: Any) -> None:
    """Where σ cuts at a level: one that leaves a row `many` active units, not half of all."""
    threshold = getattr(codec.code_activation, "threshold", None)
    if isinstance(threshold, torch.nn.Parameter) or isinstance(codec.code_activation, ReLU):
        settle(codec, few, Aim(many(codec)), loss)
    if not codec.code_activation.sparse or threshold is not None:
        codec.decoder.bias.sub_(codec.decode(codec.encode(few)).mean(0) - few.mean(0))


def _frame_of_rows(x: Tensor, n_units: int, generator: Generator, *, pairs: bool) -> Tensor:
    """Unit vectors (D, K), each of a row less the mean or less another row; of any direction where rows are too few."""
    frame = x.new_empty(n_units, x.shape[1]).normal_(generator=generator)
    rows = torch.unique(x, dim=0)  # two units that start as one stay one
    one = torch.randperm(len(rows), generator=generator)[:n_units]
    off = rows[one].sub_(rows[torch.randint(len(rows), (len(one),), generator=generator)] if pairs else x.mean(0))
    frame[: len(off)] = torch.where((off != 0).any(1, keepdim=True), off, frame[: len(off)])
    return frame.div_(torch.linalg.vector_norm(frame, dim=1, keepdim=True)).T


def _scaled(frame: Tensor, x: Tensor, codec: Codec, *, bent: bool) -> Tensor:
    """The frame times what suits σ: least squares where σ(2a) = 2 σ(a), unit spread before others.

    Unit spread too where the loss's link is bent: x̂ is then in other units than the rows.
    """
    a = x @ frame
    squash = codec.code_activation
    if getattr(squash, "outputs", 1) > 1:  # a code that is drawn around a
        return frame
    if not squash.sparse and (bent or not torch.allclose(squash(2 * a), 2 * squash(a))):
        spread = a.std(0, correction=0)
        floor = 1e-2 * spread.max()  # axes along which rows hardly differ are not blown up
        return frame / torch.where(floor > 0, spread.clamp(min=floor), 1.0)
    x_hat = squash(a) @ frame.T
    size = x_hat.square().sum()
    return frame * ((x * x_hat).sum() / size) if size > 0 else frame


def _fill_biases(codec: Codec, x: Tensor, loss: Any) -> None:
    """Encoder: -W mean, so that it sees centred rows; decoder: mean, so that it answers with it."""
    for layer in codec.affines():
        if layer.bias is not None:
            layer.bias.zero_()
    codec.encoder.bias.copy_(-codec.encoder(codec.centre[None])[0])
    h = codec.encode(x - x.mean(0) + codec.centre)  # a sample's own mean is not that of all rows
    codec.decoder.bias.copy_(loss.link(codec.centre) - codec.decode(h).mean(0))


def _probabilistic(codec: Codec, frame: Tensor, x: Tensor, loss: Any) -> Tensor | None:
    """The optimum of the linear variational autoencoder, probabilistic PCA; the drawn code's log s (K,).

    With eigenvalues l_k, axes u_k and noise s²: m = √(l - s²) / l uᵀx, V = u √(l - s²), code variance s² / l
    (Lucas et al. 2019, "Don't Blame the ELBO!").
    """
    encoder, decoder = codec.encoder.straight, codec.decoder.straight
    if encoder is None or decoder is None:
        return None
    values = (x @ frame).square().mean(0)
    rest = (x.square().sum(1).mean() - values.sum()) / max(1, x.shape[1] - len(values))
    scale = getattr(getattr(loss, "p", None), "scale", None)
    noise = rest.clamp(min=1e-6 + 1e-4 * float(values.mean())) if scale is None else torch.as_tensor(scale**2).to(x)
    values = torch.maximum(values, noise)
    gain = (values - noise).sqrt()
    encoder.weight[: len(gain)].copy_((frame * (gain / values)).T)
    decoder.weight.copy_(frame * gain)
    if codec.log_scale is not None:
        codec.log_scale.copy_(noise.log() / 2)
    return (noise / values).log() / 2


def _fit_decoder(codec: Codec, decoder: Affine, x: Tensor, loss: Any) -> None:
    """V by least squares from the codes, where PCA's axes are not the answer: σ or the loss's link is bent."""
    h = codec.encode(x)
    target = loss.link(x).double() - codec.decode(h).double()
    off = h.double() - h.double().mean(0)
    gram = off.T @ off / len(off)
    gram += 1e-6 * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    fitted = torch.linalg.solve(gram, off.T @ (target - target.mean(0)) / len(off)).T + decoder.weight.double()
    best, least = decoder.weight.clone(), math.inf
    # least squares of the link may be far from least loss: the share of it that costs least, or none
    for share in (1.0, 0.5, 0.25, 0.1, 0.0):
        decoder.weight.copy_(share * fitted)
        codec.decoder.bias.copy_(loss.link(codec.centre))
        codec.decoder.bias.sub_(decoder.weight @ h.mean(0).to(decoder.weight))
        p = codec(x)
        cost = float(mean(loss(p), p))
        if cost < least:
            best, least = decoder.weight.clone(), cost
    decoder.weight.copy_(best)
    codec.decoder.bias.copy_(loss.link(codec.centre) - best @ h.mean(0).to(best))
