"""What `cfg.json` of a SAELens folder says, checked, in the words of version 6."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from retell.convert.folder import as_record, read_json
from retell.store import ModelFileError

__all__ = ["BATCH", "Config", "read_config", "shapes"]

BATCH = ("batchtopk", "matryoshka_batchtopk")
"""Architectures that only checkpoints of training have."""
ONES = ("standard", "topk", "jumprelu", "gated", *BATCH)

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Config(msgspec.Struct, kw_only=True):
    """What retell reads of cfg.json."""

    architecture: str
    d_in: Positive
    d_sae: Positive
    k: Annotated[float, msgspec.Meta(gt=0)] = 100.0
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    rescale_acts_by_decoder_norm: bool | None = None
    matryoshka_widths: list[int] = []
    metadata: dict[str, Any] = {}


def read_config(file: Path) -> Config:
    """The configuration of a folder that retell can express.

    Raises
    ------
    ModelFileError
        If it is damaged, or retell can't express what it says.
    """
    config = as_record(file, _modern(read_json(file)), Config)
    _refuse(file, config)
    return config


def _modern(found: dict[str, Any]) -> dict[str, Any]:
    """The configuration as version 6 writes it; it is older where it names an older version or none."""
    metadata = found.get("metadata")
    version = found.get("sae_lens_version") or (metadata.get("sae_lens_version") if isinstance(metadata, dict) else "")
    major = str(version or "0").split(".")[0]
    if major.isdecimal() and int(major) >= 6:
        return found
    activation = found.get("activation_fn", found.get("activation_fn_str", "relu"))
    found = {"architecture": "standard", **found}
    normalized = found.get("normalize_activations")
    if not normalized or isinstance(normalized, bool):
        found["normalize_activations"] = "expected_average_only_in" if normalized else "none"
    options = found.get("activation_fn_kwargs")
    if activation == "topk" and isinstance(options, dict) and "k" in options:
        return {**found, "architecture": "topk", "k": options["k"]}
    if activation not in ("relu", "topk"):
        found["architecture"] += f" with activation_fn {activation!r}"
    return found


def _refuse(file: Path, config: Config) -> None:
    if config.architecture not in ONES:
        raise ModelFileError(
            f"{file} has the architecture {config.architecture!r}, which no retell model can express; these can be"
            f" read: {', '.join(ONES)}"
        )
    if config.normalize_activations != "none":
        raise ModelFileError(
            f"{file} has normalize_activations={config.normalize_activations!r}: such folders change rows by what is"
            " not in them; fold the normalisation into the weights with SAELens, and save again with 'none'"
        )
    if config.architecture == "topk" and not (int(config.k) == config.k and config.k <= config.d_sae):
        raise ModelFileError(f"{file} has k={config.k:g}, a whole number up to d_sae={config.d_sae} was expected")


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """What tensors such a folder must have, and of which shapes."""
    D, K = config.d_in, config.d_sae
    found: dict[str, tuple[int, ...]] = {"W_enc": (D, K), "W_dec": (K, D), "b_dec": (D,)}
    if config.architecture == "gated":
        return found | {"b_gate": (K,), "b_mag": (K,), "r_mag": (K,)}
    found["b_enc"] = (K,)
    if config.architecture in BATCH:
        found["topk_threshold"] = ()
    return found | ({"threshold": (K,)} if config.architecture == "jumprelu" else {})
