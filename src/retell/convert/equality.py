"""Whether a folder says what a model does, on generated rows: both are computed in float64, apart from each other."""

from __future__ import annotations

from copy import copy, deepcopy
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from msgspec.structs import replace
from torch import Generator, Tensor

from retell.activations import BatchTopK, Gated, JumpReLU, TopK
from retell.estimator import Autoencoder
from retell.parts import part_of
from retell.seeds import generator

__all__ = ["Equality", "Folder", "compare", "top"]

Array = npt.NDArray[Any]

ROUNDING = 1e-6  # of the largest value: what float32 weights may differ by
ROWS = 96  # of each kind
NEAR = (1e-3, -1e-3, 1e-5, -1e-5)  # how far from a threshold, as a share of the largest activation, rows are put
MOST = 16  # units of a generated code


class Folder(Protocol):
    """What a folder says, as its format defines it, in float64."""

    def encode(self, rows: Tensor) -> Tensor:
        """Rows (N, D), in their own units, to codes (N, K)."""

    def decode(self, h: Tensor) -> Tensor:
        """Codes (N, K) to rows (N, D)."""


class Equality(NamedTuple):
    """How far the outputs of a folder and of a model differ.

    Parameters
    ----------
    codes : float
        The largest difference of codes, as a share of the largest activation.
    rows : float
        The largest difference of reconstructions from the same codes, as a share of its column's largest value.
    n_rows : int
        Rows that were compared.
    undecided : int
        Cells of the codes so near a threshold that rounding decides whether they are active: these count as equal.

    Examples
    --------
    >>> from retell.convert.equality import Equality
    >>> print(Equality(codes=1e-8, rows=2e-8, n_rows=288, undecided=0))
    equal on 288 rows: codes to 1e-08, reconstructions to 2e-08
    """

    codes: float
    rows: float
    n_rows: int
    undecided: int

    @property
    def holds(self) -> bool:
        """Whether no difference is more than rounding, 1e-6."""
        return self.codes <= ROUNDING and self.rows <= ROUNDING

    def __str__(self) -> str:
        text = "equal" if self.holds else "not equal"
        text += f" on {self.n_rows} rows: codes to {self.codes:.2g}, reconstructions to {self.rows:.2g}"
        return text + (f", {self.undecided} codes at a threshold left out" if self.undecided else "")


@torch.no_grad()
def compare(model: Autoencoder, folder: Folder) -> Equality:
    """Encode and decode generated rows, many of them close to thresholds, with a fitted model and with a folder.

    Returns
    -------
    Equality
        The largest of all differences.
    """
    exact = _in_float64(model)
    found = [_compare(exact, folder, rows) for rows in _rows(exact)]
    codes, errors, counts, undecided = zip(*found, strict=True)
    return Equality(max(codes), max(errors), sum(counts), sum(undecided))


def top(a: Tensor, k: int) -> Tensor:
    """The k largest of each row of a (N, K), 0 elsewhere and where they are negative."""
    values, at = a.topk(k, dim=-1)
    return torch.zeros_like(a).scatter(-1, at, values.relu())


def _in_float64(model: Autoencoder) -> Autoencoder:
    exact = copy(model)
    fitted = replace(model._model.fitted, norms=None)  # the generated rows need not look like those of the fit
    exact._become(replace(model._model, codec=deepcopy(model.codec_).to("cpu", torch.float64), fitted=fitted))
    exact.__dict__.pop("feature_names_in_", None)  # generated rows have no names
    exact.inference = "encoder"
    return exact


def _compare(exact: Autoencoder, folder: Folder, rows: Array) -> Equality:
    h, theirs = exact.transform(rows), folder.encode(torch.from_numpy(rows)).numpy()
    a = exact.codec_.encoder(torch.from_numpy(exact.scaling_.to(rows)))
    scale = max(float(a.abs().max()), float(np.abs(h).max())) or 1.0
    undecided = _undecided(a, exact.codec_.code_activation, 2 * ROUNDING * scale).numpy()
    off = np.where(undecided, 0.0, np.abs(h - theirs))
    ours, made = exact.inverse_transform(h), folder.decode(torch.from_numpy(h)).numpy()
    largest = np.abs(ours).max(0)
    errors = np.abs(ours - made).max(0) / np.where(largest > 0, largest, 1.0)
    return Equality(_worst(off) / scale, _worst(errors), len(rows), int(undecided.sum()))


def _worst(values: Array) -> float:
    """The largest value, infinite where one is not a number."""
    return float(np.nan_to_num(values, nan=np.inf).max())


def _undecided(a: Tensor, squash: Any, edge: float) -> Tensor:
    """Where (N, K) activations are nearer than `edge` to where their unit jumps."""
    part = part_of(squash)
    if isinstance(part, TopK):
        if part.k >= a.shape[1]:
            return torch.zeros_like(a, dtype=torch.bool)
        last, next_ = a.topk(int(part.k) + 1).values[:, -2:, None].unbind(1)
        return (last - next_ <= edge) & ((a - last).abs() <= edge)
    if isinstance(part, BatchTopK | JumpReLU | Gated):
        return (a - _threshold(squash)).abs() <= edge
    return torch.zeros_like(a, dtype=torch.bool)


def _threshold(squash: Any) -> Tensor:
    """From where on units are active, one number or (K,)."""
    learned = squash.state_dict() if isinstance(squash, torch.nn.Module) else {}
    threshold: Tensor = learned.get("threshold", torch.zeros(()))
    return threshold.clamp(min=0)


def _rows(exact: Autoencoder) -> list[Array]:
    """Rows (N, D), in their own units: normal ones, some decoded from sparse codes, and these moved to thresholds."""
    codec, draw = exact.codec_, generator(0)
    W = codec.encoder.last.weight
    b = codec.encoder(torch.zeros_like(W[0]))
    threshold = _threshold(codec.code_activation).expand(len(W))
    x = torch.randn(ROWS, W.shape[1], generator=draw, dtype=W.dtype)
    h = _codes(1 + b.abs() + threshold, draw)
    decoded = codec.decode(h)
    unit = torch.randint(len(W), (ROWS,), generator=draw)
    a = codec.encoder(decoded)
    side = torch.tensor(NEAR, dtype=W.dtype).repeat(ROWS // len(NEAR)) * a.abs().max()
    way = W[unit] / W[unit].square().sum(1, keepdim=True).clamp(min=1e-300)
    missing = threshold[unit] + side - a[torch.arange(ROWS), unit]
    return [exact.scaling_.back(kind.numpy()) for kind in (x, decoded, decoded + missing[:, None] * way)]


def _codes(size: Tensor, draw: Generator) -> Tensor:
    """Sparse codes (N, K), values around the units' sizes (K,)."""
    K = len(size)
    at = torch.randint(K, (ROWS, min(MOST, K)), generator=draw)
    values = -torch.rand(at.shape, generator=draw, dtype=size.dtype).clamp(min=1e-6).log() * size[at]
    keep = torch.arange(at.shape[1]) <= torch.randint(at.shape[1], (ROWS, 1), generator=draw)
    return torch.zeros(ROWS, K, dtype=size.dtype).scatter(-1, at, values * keep)
