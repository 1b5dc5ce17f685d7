"""Folders of sparsify: `cfg.json` beside `sae.safetensors`.

h = max(a, 0) of the k largest a,   a = (row - b_dec) encoder.weightᵀ + encoder.bias,   row^ = h W_dec + b_dec
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from safetensors.torch import save
from torch import Tensor

from retell.activations import TopK
from retell.convert.equality import Equality, top
from retell.convert.folder import (
    as_record,
    check_tensors,
    columns_in,
    facts,
    model_of,
    prefixes_in,
    read_json,
    read_tensors,
    write_compared,
)
from retell.convert.shallow import Shallow, dtype_of
from retell.estimator import Autoencoder
from retell.store import ModelFileError

__all__ = ["FILES", "read", "read_compared", "write"]

FILES = ("sae.safetensors", "cfg.json")

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Config(msgspec.Struct, kw_only=True):
    """What retell reads of cfg.json; the defaults are sparsify's."""

    d_in: Positive
    activation: str = "topk"
    expansion_factor: Positive = 32
    num_latents: Annotated[int, msgspec.Meta(ge=0)] = 0
    k: Positive = 32
    skip_connection: bool = False
    transcode: bool = False

    @property
    def width(self) -> int:
        """K."""
        return self.num_latents or self.d_in * self.expansion_factor


def write(model: Autoencoder, path: str | PathLike[str], *, dtype: str = "float32") -> Equality:
    """Write a fitted model with a TopK code as a folder that sparsify's ``SparseCoder.load_from_disk`` reads.

    The folder takes rows in their own units: scaling is folded into the weights. It knows no unseen cells. An older
    such folder at `path` is replaced in one step.

    Parameters
    ----------
    model : Autoencoder
        Fitted, without hidden layers, ``code_activation="TopK(k)"``.
    path : path
        The folder. Its parent must exist.
    dtype : {"float32", "float64"}, default="float32"
        Of the weights, and of what sparsify computes.

    Returns
    -------
    Equality
        By how much the folder, read back, differs from the model: at most 1e-6, relative.

    Raises
    ------
    ValueError
        If sparsify has no place for the model, or the outputs would differ; nothing is written then.
    FileExistsError
        If something else stands at `path`.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_digits
    >>> from retell import Autoencoder
    >>> from retell.convert import sparsify
    >>> X = load_digits().data
    >>> model = Autoencoder(96, code_activation="TopK(8)", max_iter=2, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sparsify.write(model, f"{folder}/sae").holds
    True
    """
    it = Shallow.of(model, dtype_of(dtype))
    if not isinstance(it.code, TopK):
        raise ValueError(f"sparsify knows TopK codes only, and this model has {it.code!r}: SAELens knows more of them")
    D, K = it.W.shape
    config = {
        "activation": "topk",
        "expansion_factor": 32,  # not used where num_latents is given
        "normalize_decoder": False,
        "num_latents": K,
        "k": min(int(it.code.k), K),
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D,
    }
    tensors = {"encoder.weight": it.W.T.contiguous(), "encoder.bias": it.b, "W_dec": it.V, "b_dec": it.c}
    weights = save(tensors, {"retell": json.dumps(facts(model))})  # sparsify complains of what it does not know in cfg
    files = {"sae.safetensors": weights, "cfg.json": json.dumps(config, indent=1).encode()}
    return write_compared(model, path, files, "sparsify folder", _open)


def read(path: str | PathLike[str]) -> Autoencoder:
    """The fitted `Autoencoder` that a folder of sparsify holds.

    It transforms, reconstructs, saves and loads as any other, but it has seen no rows: until `partial_fit`, which goes
    on from it, there is no `score_samples`.

    Parameters
    ----------
    path : path
        Of one sparse coder: ``<run>/<hookpoint>`` where sparsify has trained several.

    Raises
    ------
    ModelFileError
        If it is no such folder, a transcoder, or has another activation than TopK.
    """
    return read_compared(path)[0]


def read_compared(path: str | PathLike[str]) -> tuple[Autoencoder, Equality]:
    """As `read`, with how far the model differs from the folder."""
    return model_of(path, _open(Path(path)), "sparsify, topk")


@dataclass(frozen=True)
class _Folder:
    """What a folder says, and what sparsify makes of it."""

    config: Config
    tensors: dict[str, Tensor]
    known: Any
    """What retell has written beside the tensors."""

    def encode(self, rows: Tensor) -> Tensor:
        W, b, c = (self.tensors[name].double() for name in ("encoder.weight", "encoder.bias", "b_dec"))
        return top(((rows - c) @ W.T + b).relu(), self.config.k)

    def decode(self, h: Tensor) -> Tensor:
        return h @ self.tensors["W_dec"].double() + self.tensors["b_dec"].double()

    def shallow(self) -> Shallow:
        """The same in retell's words."""
        t = self.tensors
        W, b, V, c = t["encoder.weight"].T, t["encoder.bias"], t["W_dec"], t["b_dec"]
        prefixes, columns = prefixes_in(self.known, len(b)), columns_in(self.known, len(c))
        return Shallow(W, b, V, c, TopK(self.config.k), prefixes=prefixes, columns=columns)


def _open(path: Path) -> _Folder:
    """A folder, checked.

    Raises
    ------
    ModelFileError
    """
    file, weights = path / "cfg.json", path / "sae.safetensors"
    config = as_record(file, read_json(file), Config)
    D, K = config.d_in, config.width
    if config.transcode or config.skip_connection:
        raise ModelFileError(
            f"{file} is of a transcoder or has a skip connection, and no retell model can express these: only"
            " autoencoders can be read"
        )
    if config.activation != "topk" or config.k > K:
        raise ModelFileError(
            f"{file} has activation={config.activation!r} and k={config.k}, 'topk' with a k up to {K} was expected"
        )
    tensors, texts = read_tensors(weights)
    shapes = {"encoder.weight": (K, D), "encoder.bias": (K,), "W_dec": (K, D), "b_dec": (D,)}
    check_tensors(weights, tensors, shapes)
    try:
        known = json.loads(texts.get("retell", "{}"))
    except ValueError:  # whoever wrote it, the folder can do without
        known = {}
    tensors = {k: v.to(torch.promote_types(v.dtype, torch.float32)) for k, v in tensors.items()}
    return _Folder(config, tensors, known)
