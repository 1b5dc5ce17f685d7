"""A fitted estimator as `model.toml` and tensors, and back."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from os import PathLike
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from retell import __version__, auto
from retell.codec import Codec
from retell.density import Density
from retell.factors import Factors
from retell.grammar import read_parts
from retell.likeness import Norms
from retell.parts import Part
from retell.plan import Parts, build_codec
from retell.scaling import Scaling
from retell.settings import Settings, as_settings
from retell.store import ModelFileError, read_model, read_tensors, write_model

__all__ = ["Fitted", "Model", "read", "write"]

RECORDS: dict[str, Any] = {"scaling": Scaling, "density": Density, "factors": Factors}
DTYPES = {"float32": "F32", "float64": "F64"}  # as safetensors calls them


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
    best_iter: int | None = None
    """The epoch whose parameters were kept, counted from 1; 0 for the start."""
    n_rows: int = 0
    """Rows that it has come from."""
    stopped_by: str = ""
    """"max_time" where a clock ended the fit."""
    origin: str = ""
    """What the weights come from where it was no fit: then there are no scores (NaN) and no density."""
    filler: str
    """"network" or "factors": what completes rows."""
    n_factors: int
    independent: bool = False
    """Whether the units' density is one for each."""
    norms: Norms | None = None
    """Of the training rows: low and high quantile, and root mean square, of their scaled norms."""
    n_held_out: int = 0
    """Rows that were not fitted to but judge."""
    n_left_out: int = 0
    """Rows that `max_norm` has left out."""
    dialled: str = ""
    """What `target_l0` or `target_fvu` has found."""
    best_loss: float
    score: float
    """R² of the best epoch on held-out rows, or on all rows where none were held out."""
    train_score: float
    """The same on the rows trained on."""
    pca_score: float
    """The same of PCA."""
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
    density: Density | None
    """Of the rows of the fit; None for weights that come from elsewhere."""
    factors: Factors


def write(path: str | PathLike[str], model: Model) -> None:
    """Write a model folder, all or nothing."""
    records = {name: asdict(getattr(model, name)) for name in _records(model.fitted)}
    arrays = {f"{name}.{field}": value for name, record in records.items() for field, value in record.items()}
    tensors = {f"codec.{name}": value for name, value in model.codec.state_dict().items()}
    fitted = {name: value for name, value in msgspec.to_builtins(model.fitted).items() if value is not None}
    config = {
        "parameters": {name: "None" if v is None else v for name, v in asdict(model.settings).items()},
        "fitted": fitted,
        "written": {
            "by": f"retell {__version__}, torch {torch.__version__}, numpy {np.__version__}",
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
        if fitted.dtype not in DTYPES:
            raise ValueError(f"dtype {fitted.dtype!r} is none of {', '.join(DTYPES)}")
        if fitted.columns is not None and len(fitted.columns) != fitted.n_features:
            raise ValueError(f"{len(fitted.columns)} column names for {fitted.n_features} columns")
    except (ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ModelFileError(f"{path} can't be read: {error}") from None
    if config:
        raise ModelFileError(f"{path} has a table that this version does not know: {sorted(config)[0]}")
    D, K = fitted.n_features, fitted.n_components
    shapes: dict[str, tuple[int, ...]] = {f"scaling.{name}": (D,) for name in Scaling.__dataclass_fields__}
    shapes |= {"factors.loadings": (D, fitted.n_factors), "factors.noise": (D,)}
    if "density" in _records(fitted):
        shapes |= {"density.noise": (D,), "density.code_mean": (K,)}
        shapes |= {"density.whiten": (K,) if fitted.independent else (K, K)}
    kinds = {name: (shape, "F64") for name, shape in shapes.items()}
    weights = codec.state_dict().items()
    kinds |= {f"codec.{name}": (tuple(value.shape), DTYPES[fitted.dtype]) for name, value in weights}
    tensors = read_tensors(path, kinds)
    records = {
        name: record(**{field: tensors.pop(f"{name}.{field}").numpy() for field in record.__dataclass_fields__})
        for name, record in _records(fitted).items()
    }
    codec = _fill(codec, records["scaling"], tensors, settings)
    return Model(settings=settings, fitted=fitted, parts=chosen, codec=codec, **{"density": None, **records})


def _records(fitted: Fitted) -> dict[str, Any]:
    """Those that such a model has: weights from elsewhere have no density of rows."""
    return {name: record for name, record in RECORDS.items() if name != "density" or not fitted.origin}


def _empty_codec(settings: Settings, fitted: Fitted, parts: Parts) -> Codec:
    dtype = torch.float64 if fitted.dtype == "float64" else torch.float32
    widths = (fitted.encoder, fitted.decoder)
    return build_codec(settings, parts, fitted.n_features, fitted.n_components, widths, dtype)


def _fill(codec: Codec, scaling: Scaling, tensors: Mapping[str, Tensor], settings: Settings) -> Codec:
    weights = {name.removeprefix("codec."): value for name, value in tensors.items()}
    codec.load_state_dict(weights, assign=True)
    codec.centre = torch.from_numpy(scaling.centre).to(next(iter(weights.values())).dtype)
    try:
        return codec.to(auto.device(settings.device))
    except ValueError:  # a model that was fitted on a GPU works where there is none
        return codec.to("cpu")
