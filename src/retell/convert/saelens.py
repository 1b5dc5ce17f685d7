"""Folders of SAELens 6: `cfg.json` beside `sae_weights.safetensors`.

    a = (row - b_dec) W_enc + b_enc,   row^ = h W_dec + b_dec

=============  =============================================================  ==================
architecture   h                                                              code activation
=============  =============================================================  ==================
standard       max(a, 0)                                                      ReLU
topk           max(a, 0) of the k largest a                                   TopK
jumprelu       max(a, 0) where a > threshold                                  JumpReLU, BatchTopK
gated          max(exp(r_mag) (row - b_dec) W_enc + b_mag, 0) where           Gated
               (row - b_dec) W_enc + b_gate > 0
=============  =============================================================  ==================

SAELens itself keeps BatchTopK and matryoshka dictionaries as ``jumprelu`` with one threshold for all units. Checkpoints
of their training, ``batchtopk`` and ``matryoshka_batchtopk``, are read too, as what would be kept of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from retell.activations import BatchTopK, Gated, JumpReLU, ReLU, TopK
from retell.convert.equality import Equality, top
from retell.convert.folder import (
    check_tensors,
    columns_in,
    facts,
    model_of,
    prefixes_in,
    read_tensors,
    write_compared,
)
from retell.convert.saelens_config import BATCH, Config, read_config, shapes
from retell.convert.shallow import Shallow, dtype_of
from retell.estimator import Autoencoder
from retell.parts import Part
from retell.store import ModelFileError

__all__ = ["FILES", "read", "read_compared", "write"]

FILES = ("sae_weights.safetensors", "cfg.json")
VERSION = "6.54.12"  # whose layout this is


def write(model: Autoencoder, path: str | PathLike[str], *, dtype: str = "float32") -> Equality:
    """Write a fitted model as a folder that SAELens' ``SAE.load_from_disk`` reads.

    The folder takes rows in their own units: scaling is folded into the weights. It knows no unseen cells. ReLU
    becomes ``standard``, TopK ``topk``, Gated ``gated``; JumpReLU and BatchTopK, with `Nested` or without, become
    ``jumprelu``. An older such folder at `path` is replaced in one step.

    Parameters
    ----------
    model : Autoencoder
        Fitted, without hidden layers.
    path : path
        The folder. Its parent must exist.
    dtype : {"float32", "float64"}, default="float32"
        Of the weights, and of what SAELens computes.

    Returns
    -------
    Equality
        By how much the folder, read back, differs from the model: at most 1e-6, relative.

    Raises
    ------
    ValueError
        If SAELens has no architecture for the model, or the outputs would differ; nothing is written then.
    FileExistsError
        If something else stands at `path`.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_digits
    >>> from retell import Autoencoder
    >>> from retell.convert import saelens
    >>> X = load_digits().data
    >>> model = Autoencoder(96, code_activation="TopK(8)", max_iter=2, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     equality = saelens.write(model, f"{folder}/sae")
    ...     again = saelens.read(f"{folder}/sae")
    >>> equality.holds, again.transform(X).shape
    (True, (1797, 96))
    """
    it = Shallow.of(model, dtype_of(dtype))
    config, tensors = _said(it)
    config = {**config, "dtype": dtype, "device": "cpu"}
    config["metadata"] = {**config["metadata"], "sae_lens_version": VERSION, "retell": facts(model)}
    files = {"sae_weights.safetensors": save(tensors), "cfg.json": json.dumps(config, indent=1).encode()}
    return write_compared(model, path, files, "SAELens folder", _open)


def read(path: str | PathLike[str]) -> Autoencoder:
    """The fitted `Autoencoder` that a folder of SAELens holds.

    It transforms, reconstructs, saves and loads as any other, but it has seen no rows: until `partial_fit`, which goes
    on from it, there is no `score_samples`. Norms that SAELens would fold into the weights are folded.

    Parameters
    ----------
    path : path
        Written by SAELens' ``save_model`` or ``save_inference_model``, or by `write`.

    Raises
    ------
    ModelFileError
        If it is no such folder, or an architecture or a normalisation of rows that retell can't express.
    """
    return read_compared(path)[0]


def read_compared(path: str | PathLike[str]) -> tuple[Autoencoder, Equality]:
    """As `read`, with how far the model differs from the folder."""
    folder = _open(Path(path))
    return model_of(path, folder, f"SAELens, {folder.config.architecture}")


@dataclass(frozen=True)
class _Folder:
    """What a folder says, and what SAELens makes of it."""

    config: Config
    tensors: dict[str, Tensor]

    def encode(self, rows: Tensor) -> Tensor:
        t, architecture = self._t, self.config.architecture
        x = rows - t["b_dec"] if self.config.apply_b_dec_to_input else rows
        if architecture == "gated":
            size = x @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]
            return (x @ t["W_enc"] + t["b_gate"] > 0) * size.relu()
        a = (x @ t["W_enc"] + t["b_enc"]) * self._norms
        if architecture == "topk":
            return top(a, int(self.config.k))
        return a.relu() if architecture == "standard" else a.relu() * (a > self._threshold.double())

    def decode(self, h: Tensor) -> Tensor:
        return (h / self._norms) @ self._t["W_dec"] + self._t["b_dec"]

    def shallow(self) -> Shallow:
        """The same in retell's words, norms folded."""
        t, norms = self.tensors, self._norms
        like = torch.promote_types(t["W_enc"].dtype, torch.float32)
        code, own = self._code()
        gated = self.config.architecture == "gated"
        return Shallow(
            W=(t["W_enc"].double() * norms).to(like),
            b=t["b_gate"] if gated else (t["b_enc"].double() * norms).to(like),
            V=(t["W_dec"].double() / norms[:, None]).to(like),
            c=t["b_dec"],
            code=code,
            own=own,
            centred=self.config.apply_b_dec_to_input,
            prefixes=self._prefixes(),
            columns=columns_in(self.config.metadata.get("retell"), self.config.d_in),
        )

    def _code(self) -> tuple[Part, dict[str, Tensor]]:
        t, architecture = self.tensors, self.config.architecture
        if architecture == "standard":
            return ReLU(), {}
        if architecture == "topk":
            return TopK(int(self.config.k)), {}
        if architecture == "gated":
            r, gate = t["r_mag"].double(), t["b_gate"].double()
            return Gated(), {"stretch": r, "shift": t["b_mag"].double() - r.exp() * gate}
        threshold = self._threshold.expand(self.config.d_sae)
        k = self._k()
        if k is None or not bool((threshold == threshold[0]).all()):
            return JumpReLU(), {"threshold": threshold}
        # active from the threshold on, where SAELens' are active above it
        return BatchTopK(k), {"threshold": _next(threshold[0], up=True)}

    def _k(self) -> int | None:
        """The k that a common threshold stands for, where it is known and a whole number."""
        details = self.config.metadata.get("training_architecture_details")
        told = details.get("k") if isinstance(details, dict) and self._trained in BATCH else None
        k = self.config.k if self.config.architecture in BATCH else told
        whole = isinstance(k, int | float) and 1 <= k <= self.config.d_sae and int(k) == k
        return int(k) if whole and k is not None else None

    def _prefixes(self) -> tuple[int, ...]:
        """Matryoshka levels below the whole code."""
        details = self.config.metadata.get("training_architecture_details")
        told = details.get("matryoshka_widths") if isinstance(details, dict) else None
        widths = self.config.matryoshka_widths or told if self._trained == BATCH[1] else None
        known = prefixes_in(self.config.metadata.get("retell"), self.config.d_sae)
        return known or prefixes_in({"prefixes": widths}, self.config.d_sae)

    @property
    def _trained(self) -> Any:
        architecture = self.config.architecture
        return architecture if architecture in BATCH else self.config.metadata.get("training_architecture")

    @cached_property
    def _t(self) -> dict[str, Tensor]:
        return {name: value.double() for name, value in self.tensors.items()}

    @cached_property
    def _norms(self) -> Tensor:
        """By what activations (K,) are multiplied before units are chosen, and divided before they are decoded."""
        rescaled, batch = self.config.rescale_acts_by_decoder_norm, self.config.architecture in BATCH
        norms = self.tensors["W_dec"].double().norm(dim=1).clamp(min=1e-8)
        chosen = batch or self.config.architecture == "topk"
        return norms if chosen and (batch if rescaled is None else rescaled) else torch.ones_like(norms)

    @cached_property
    def _threshold(self) -> Tensor:
        """(K,), or one number; in the precision that units are compared in."""
        if "topk_threshold" in self.tensors:
            return self.tensors["topk_threshold"].to(self.tensors["b_enc"].dtype)
        return self.tensors["threshold"]


def _said(it: Shallow) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of a folder."""
    tensors = {"W_enc": it.W, "W_dec": it.V, "b_dec": it.c}
    config: dict[str, Any] = {"d_in": len(it.c), "d_sae": len(it.b), "apply_b_dec_to_input": it.centred}
    config |= {"normalize_activations": "none", "reshape_activations": "none", "metadata": {}}
    if isinstance(it.code, Gated):
        size = (it.own["stretch"].double().exp() * it.b.double() + it.own["shift"].double()).to(it.b)
        tensors |= {"b_gate": it.b, "b_mag": size, "r_mag": it.own["stretch"]}
        return {**config, "architecture": "gated"}, tensors
    tensors["b_enc"] = it.b
    if isinstance(it.code, TopK):
        k = {"k": min(int(it.code.k), len(it.b)), "rescale_acts_by_decoder_norm": False}
        return {**config, **k, "architecture": "topk"}, tensors
    if isinstance(it.code, ReLU):
        return {**config, "architecture": "standard"}, tensors
    threshold = it.own["threshold"].clamp(min=0)
    if isinstance(it.code, BatchTopK):
        threshold = _next(threshold, up=False).expand(len(it.b))
        details: dict[str, Any] = {"k": int(it.code.k)}
        if it.prefixes:
            details["matryoshka_widths"] = [*it.prefixes, len(it.b)]
        config["metadata"] = {
            "training_architecture": BATCH[bool(it.prefixes)],
            "training_architecture_details": details,
        }
    tensors["threshold"] = threshold.contiguous()
    return {**config, "architecture": "jumprelu"}, tensors


def _next(value: Tensor, *, up: bool) -> Tensor:
    """The next number of the value's dtype; at 0 and below there is nothing to tell, and it stays."""
    towards = torch.full_like(value, torch.inf if up else -torch.inf)
    return torch.where(value > 0, torch.nextafter(value, towards), value)


def _open(path: Path) -> _Folder:
    """A folder, checked.

    Raises
    ------
    ModelFileError
    """
    config = read_config(path / "cfg.json")
    tensors = read_tensors(path / "sae_weights.safetensors")[0]
    scaling = tensors.pop("scaling_factor", torch.ones(()))
    if not bool((scaling == 1).all()):
        raise ModelFileError(f"{path} has a scaling_factor that is not folded into its weights: fold it with SAELens")
    if "log_threshold" in tensors:  # as older checkpoints of training have it
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    check_tensors(path / "sae_weights.safetensors", tensors, shapes(config))
    # float16 and bfloat16 are held exactly
    return _Folder(config, {k: v.to(torch.promote_types(v.dtype, torch.float32)) for k, v in tensors.items()})
