"""Folders of dictionary_learning, which can be read and not written: `config.json` beside `ae.pt`.

`ae.pt` is a pickle. It is the one that retell opens, and only as PyTorch's reader of tensors does
(``weights_only=True``): nothing in it is run.

======================  ====================================================  ===============
class                   code of a = (row - b_dec) W_enc + b_enc               code activation
======================  ====================================================  ===============
AutoEncoder             max(a, 0), times the norms of the decoder's vectors   ReLU
AutoEncoderNew          max(a, 0), where b_dec is not subtracted              ReLU
AutoEncoderTopK         max(a, 0) of the k largest a                          TopK
BatchTopKSAE            max(a, 0) where that is above the threshold           BatchTopK
MatryoshkaBatchTopKSAE  the same                                              BatchTopK
JumpReluAutoEncoder     max(a, 0) where a > threshold, b_dec not subtracted   JumpReLU
GatedAutoEncoder        max(exp(r_mag) a + mag_bias, 0) where                 Gated
                        a + gate_bias > 0, without b_enc
======================  ====================================================  ===============
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from retell.activations import BatchTopK, Gated, JumpReLU, ReLU, TopK
from retell.convert.equality import Equality, top
from retell.convert.folder import as_record, check_tensors, model_of, read_json
from retell.convert.shallow import Shallow
from retell.estimator import Autoencoder
from retell.parts import Part
from retell.store import ModelFileError

__all__ = ["FILES", "read", "read_compared"]

FILES = ("ae.pt", "config.json")

# What each class calls (W_enc, b_enc, W_dec, b_dec); a name that ends in "weight" is of a transposed matrix.
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec")
_PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")
_NAMES: dict[str, tuple[str, str, str, str]] = {
    "AutoEncoder": ("encoder.weight", "encoder.bias", "decoder.weight", "bias"),
    "AutoEncoderNew": ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
    "AutoEncoderTopK": _LINEAR,
    "BatchTopKSAE": _LINEAR,
    "MatryoshkaBatchTopKSAE": _PLAIN,
    "JumpReluAutoEncoder": _PLAIN,
    "GatedAutoEncoder": ("encoder.weight", "gate_bias", "decoder.weight", "decoder_bias"),
}
_UNCENTRED = ("AutoEncoderNew", "JumpReluAutoEncoder")
_BATCH = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")


class Trainer(msgspec.Struct):
    """What retell reads of the trainer."""

    dict_class: str


class Config(msgspec.Struct):
    """What retell reads of config.json."""

    trainer: Trainer


def read(path: str | PathLike[str]) -> Autoencoder:
    """The fitted `Autoencoder` that a folder of dictionary_learning holds, as its ``load_dictionary`` gives it.

    It transforms, reconstructs, saves and loads as any other, but it has seen no rows: until `partial_fit`, which goes
    on from it, there is no `score_samples`.

    Parameters
    ----------
    path : path
        ``<run>/trainer_<i>``, with `ae.pt` and `config.json`.

    Raises
    ------
    ModelFileError
        If it is no such folder, or a class that retell can't express.
    """
    return read_compared(path)[0]


def read_compared(path: str | PathLike[str]) -> tuple[Autoencoder, Equality]:
    """As `read`, with how far the model differs from the folder."""
    folder = _open(Path(path))
    return model_of(path, folder, f"dictionary_learning, {folder.kind}")


@dataclass(frozen=True)
class _Folder:
    """What a folder says, and what dictionary_learning makes of it."""

    kind: str
    tensors: dict[str, Tensor]

    def encode(self, rows: Tensor) -> Tensor:
        W, b, _, c = (value.double() for value in self._four)
        x = rows if self.kind in _UNCENTRED else rows - c
        if self.kind == "GatedAutoEncoder":
            a, size = x @ W, self.tensors["r_mag"].double().exp()
            return (a + b > 0) * (size * a + self.tensors["mag_bias"].double()).relu()
        a = x @ W + b
        if self.kind == "AutoEncoderTopK":
            return top(a.relu(), int(self.tensors["k"]))
        if "threshold" in self.tensors:
            return a.relu() * (a > self.tensors["threshold"].double())
        return a.relu() * self._norms

    def decode(self, h: Tensor) -> Tensor:
        _, _, V, c = (value.double() for value in self._four)
        return (h / self._norms) @ V + c

    def shallow(self) -> Shallow:
        """The same in retell's words, norms folded."""
        W, b, V, c = self._four
        code, own = self._code()
        return Shallow(
            W=(W.double() * self._norms).to(W.dtype),
            b=(b.double() * self._norms).to(W.dtype),
            V=(V.double() / self._norms[:, None]).to(W.dtype),
            c=c,
            code=code,
            own=own,
            centred=self.kind not in _UNCENTRED,
            prefixes=self._prefixes(),
        )

    def _code(self) -> tuple[Part, dict[str, Tensor]]:
        t = self.tensors
        if self.kind == "AutoEncoderTopK":
            return TopK(int(t["k"])), {}
        if self.kind == "JumpReluAutoEncoder":
            return JumpReLU(), {"threshold": t["threshold"]}
        if self.kind == "GatedAutoEncoder":
            r, gate = t["r_mag"].double(), t["gate_bias"].double()
            return Gated(), {"stretch": r, "shift": t["mag_bias"].double() - r.exp() * gate}
        if self.kind in _BATCH:
            threshold = t["threshold"].clamp(min=0)  # below 0 where training has not set it yet
            above = torch.nextafter(threshold, torch.full_like(threshold, torch.inf))
            return BatchTopK(int(t["k"])), {"threshold": torch.where(threshold > 0, above, threshold)}
        return ReLU(), {}

    def _prefixes(self) -> tuple[int, ...]:
        if self.kind != "MatryoshkaBatchTopKSAE":
            return ()
        return tuple(int(m) for m in self.tensors["group_sizes"].cumsum(0)[:-1])

    @cached_property
    def _four(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W_enc (D, K), b_enc (K,), W_dec (K, D), b_dec (D,)."""
        found = [self.tensors[name].T if name.endswith("weight") else self.tensors[name] for name in _NAMES[self.kind]]
        return found[0], found[1], found[2], found[3]

    @cached_property
    def _norms(self) -> Tensor:
        """By what codes (K,) are multiplied: ``load_dictionary`` normalises the vectors of an AutoEncoder."""
        norms = self._four[2].norm(dim=1)
        if self.kind != "AutoEncoder" or torch.allclose(norms, torch.ones_like(norms)):
            return torch.ones(len(norms), dtype=torch.float64)
        return torch.where(norms > 0, norms, 1.0).double()


def _open(path: Path) -> _Folder:
    """A folder, checked.

    Raises
    ------
    ModelFileError
    """
    file, weights = path / "config.json", path / "ae.pt"
    kind = as_record(file, read_json(file), Config).trainer.dict_class
    if kind not in _NAMES:
        raise ModelFileError(
            f"{file} has the class {kind!r}, which no retell model can express; these can be read: {', '.join(_NAMES)}"
        )
    tensors = _unpickled(weights)
    whole: dict[str, Tensor] = {name: tensors.pop(name) for name in ("k", "group_sizes") if name in tensors}
    name = _NAMES[kind][0]
    size = tuple(tensors[name].shape) if name in tensors else ()
    D, K = (size[::-1] if name.endswith("weight") else size) if len(size) == 2 else (0, 0)
    check_tensors(weights, tensors, _shapes(kind, D, K))
    if not (1 <= int(whole.get("k", torch.ones(()))) <= K) or (kind in (*_BATCH, "AutoEncoderTopK")) != ("k" in whole):
        raise ModelFileError(f"{weights} is damaged: a k from 1 to {K} was expected for {kind}")
    groups = whole.get("group_sizes", torch.tensor([K]))
    if groups.dim() != 1 or not bool((groups > 0).all()) or int(groups.sum()) != K:
        raise ModelFileError(f"{weights} is damaged: its group_sizes {groups.tolist()} do not make {K} units")
    tensors = {k: v.to(torch.promote_types(v.dtype, torch.float32)) for k, v in tensors.items()}
    return _Folder(kind, {**tensors, **whole, "group_sizes": groups})


def _unpickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote; nothing else in it is allowed."""
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelFileError(f"{file} can't be read: {error.strerror or error}") from None
    except Exception:  # whatever a file that is damaged, or holds more than tensors, brings about
        raise ModelFileError(f"{file} holds more than tensors, or is damaged; nothing in it was run") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelFileError(f"{file} holds no table of tensors")
    return {str(name): value.detach() for name, value in found.items()}


def _shapes(kind: str, D: int, K: int) -> dict[str, tuple[int, ...]]:
    """Of the tensors of floating-point numbers."""
    plain = ((D, K), (K,), (K, D), (D,))
    shapes: dict[str, tuple[int, ...]] = {
        name: shape[::-1] if name.endswith("weight") else shape for name, shape in zip(_NAMES[kind], plain, strict=True)
    }
    if kind == "GatedAutoEncoder":
        shapes |= {"r_mag": (K,), "mag_bias": (K,)}
    if kind == "JumpReluAutoEncoder":
        shapes["threshold"] = (K,)
    return shapes | ({"threshold": ()} if kind in (*_BATCH, "AutoEncoderTopK") else {})
