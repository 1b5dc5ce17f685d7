"""A fitted estimator as `model.toml` and tensors, and back."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from os import PathLike

import msgspec
import numpy as np
import torch
from torch import Tensor

from retell import auto
from retell.codec import Codec
from retell.density import Density
from retell.grammar import read_parts
from retell.parts import Part
from retell.plan import Parts, build_codec
from retell.scaling import Scaling
from retell.settings import Settings, as_settings
from retell.store import ModelFileError, read_model, read_tensors, write_model

__all__ = ["Fitted", "Model", "read", "write"]

RECORDS: dict[str, type[Scaling] | type[Density]] = {"scaling": Scaling, "density": Density}


class Fitted(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a fit has settled: the `[fitted]` table of model.toml."""

    n_features: int
    columns: list[str] | None = None
    n_components: int
    encoder: tuple[int, ...]
    """Hidden widths."""
    decoder: tuple[int, ...]
    constraint: str
    solver: str
    dtype: str
    seed: int
    n_iter: int
    stopped_by: str = ""
    """"max_time" where a clock ended the fit."""
    best_loss: float
    pca_score: float
    loss_curve: list[float]
    validation_scores: list[float]
    history: dict[str, list[float]]


class Model(msgspec.Struct):
    """All that a fitted estimator is."""

    settings: Settings
    fitted: Fitted
    parts: Parts
    codec: Codec
    scaling: Scaling
    density: Density


def write(path: str | PathLike[str], model: Model) -> None:
    """Write a model folder, all or nothing."""
    records = {name: asdict(getattr(model, name)) for name in RECORDS}
    arrays = {f"{name}.{field}": value for name, record in records.items() for field, value in record.items()}
    tensors = {f"codec.{name}": value for name, value in model.codec.state_dict().items()}
    fitted = {name: value for name, value in msgspec.to_builtins(model.fitted).items() if value is not None}
    config = {
        "parameters": {name: "None" if v is None else v for name, v in asdict(model.settings).items()},
        "fitted": fitted,
        "written": {
            "by": f"retell {version('retell')}, torch {torch.__version__}, numpy {np.__version__}",
            "on": f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    }
    write_model(path, config, tensors | {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()})


def read(path: str | PathLike[str], parts: Iterable[type[Part]] = ()) -> Model:
    """Read a model folder; no code in it is run, and tensors are checked before they are allocated.

    Raises
    ------
    ModelFileError
    """
    config = read_model(path)
    try:
        config.pop("written", None)
        settings = as_settings({k: None if v == "None" else v for k, v in config.pop("parameters", {}).items()})
        fitted = msgspec.convert(config.pop("fitted", {}), Fitted)
        chosen = read_parts({**asdict(settings), "constraint": fitted.constraint}, parts)
        with torch.device("meta"):
            codec = _empty_codec(settings, fitted, chosen)
    except (ValueError, TypeError, RuntimeError, OverflowError, msgspec.ValidationError) as error:
        raise ModelFileError(f"{path} can't be read: {error}") from None
    if config:
        raise ModelFileError(f"{path} has a table that this version does not know: {sorted(config)[0]}")
    D, K = fitted.n_features, fitted.n_components
    shapes = {f"codec.{name}": tuple(value.shape) for name, value in codec.state_dict().items()}
    shapes |= {f"scaling.{name}": (D,) for name in Scaling.__dataclass_fields__}
    shapes |= {"density.noise": (D,), "density.code_mean": (K,), "density.whiten": (K, K)}
    tensors = read_tensors(path, shapes)
    scaling, density = (
        record(**{field: tensors.pop(f"{name}.{field}").numpy() for field in record.__dataclass_fields__})
        for name, record in RECORDS.items()
    )
    assert isinstance(scaling, Scaling) and isinstance(density, Density)
    return Model(settings, fitted, chosen, _fill(codec, scaling, tensors, settings), scaling, density)


def _empty_codec(settings: Settings, fitted: Fitted, parts: Parts) -> Codec:
    dtype = {"float32": torch.float32, "float64": torch.float64}[fitted.dtype]
    widths = (fitted.encoder, fitted.decoder)
    return build_codec(settings, parts, fitted.n_features, fitted.n_components, widths, dtype)


def _fill(codec: Codec, scaling: Scaling, tensors: Mapping[str, Tensor], settings: Settings) -> Codec:
    weights = {name.removeprefix("codec."): value for name, value in tensors.items()}
    codec.load_state_dict(weights, assign=True)
    codec.centre = torch.from_numpy(scaling.centre).to(next(iter(weights.values())).dtype)
    return codec.to(auto.device(settings.device))
