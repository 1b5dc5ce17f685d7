"""Folders of other libraries: a JSON configuration beside tensors, read strictly and written all or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from safetensors import SafetensorError, safe_open
from torch import Tensor

from retell import __version__
from retell.convert.equality import Equality, Folder, compare
from retell.convert.shallow import Shallow
from retell.estimator import Autoencoder
from retell.losses import Nested
from retell.store import ModelFileError, write_folder

__all__ = [
    "as_record",
    "check_tensors",
    "columns_in",
    "facts",
    "model_of",
    "prefixes_in",
    "read_json",
    "read_tensors",
    "write_compared",
]

T = TypeVar("T")


class Told(Folder, Protocol):
    """A folder that can be said in retell's words."""

    def shallow(self) -> Shallow:
        """Its weights and code activation."""


def write_compared(
    model: Autoencoder,
    path: str | PathLike[str],
    files: Mapping[str, bytes],
    kind: str,
    open_: Callable[[Path], Folder],
) -> Equality:
    """Write files under a temporary name, read them back, and only where they do what the model does, rename.

    Raises
    ------
    ValueError
        If the outputs differ.
    FileExistsError
        If something else stands at `path`.
    """
    found: list[Equality] = []

    def check(new: Path) -> None:
        found.append(compare(model, open_(new)))
        if not found[0].holds:
            raise ValueError(
                f"the {kind} would not do what the model does ({found[0]}): nothing was written; dtype='float64'"
                " keeps more digits"
            )

    write_folder(path, files, kind, check)
    return found[0]


def model_of(path: str | PathLike[str], folder: Told, origin: str) -> tuple[Autoencoder, Equality]:
    """The fitted estimator that a folder holds, and how far their outputs differ.

    Raises
    ------
    ModelFileError
        If the outputs differ by more than rounding.
    """
    model = folder.shallow().autoencoder(origin)
    equality = compare(model, folder)
    if not equality.holds:
        raise ModelFileError(f"{path} can't be read with equal outputs ({equality})")
    return model, equality


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises
    ------
    ModelFileError
    """
    try:
        found = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ModelFileError(f"{file} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{file} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelFileError(f"{file} holds {type(found).__name__}, an object with names was expected")
    return found


def as_record(file: Path, found: Mapping[str, Any], kind: type[T]) -> T:
    """What a configuration says, checked; names that `kind` does not have are left.

    Raises
    ------
    ModelFileError
    """
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise ModelFileError(f"{file} can't be used: {error}".replace("Expected", "expected")) from None


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its own table of texts.

    Raises
    ------
    ModelFileError
    """
    try:
        with safe_open(str(file), framework="pt") as found:
            tensors = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118
            return tensors, found.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{file} can't be read: {error}") from None


def check_tensors(file: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors that are missing, too many, of other shapes, or no finite floating-point numbers.

    Raises
    ------
    ModelFileError
    """
    for name in sorted(tensors.keys() ^ shapes):
        there = "is missing" if name in shapes else "is not expected"
        raise ModelFileError(f"{file}: the tensor {name!r} {there}; {', '.join(sorted(shapes))} make such a folder")
    for name, tensor in tensors.items():
        shape, dtype = tuple(tensor.shape), tensor.dtype
        if shape != shapes[name] or not dtype.is_floating_point:
            raise ModelFileError(
                f"{file}: {name!r} is {dtype} of shape {shape}, numbers of shape {shapes[name]} were expected"
            )
        if not bool(tensor.isfinite().all()):
            raise ModelFileError(f"{file}: {name!r} has values that are not finite")


def facts(model: Autoencoder) -> dict[str, Any]:
    """What only retell knows of a model, for people and for the way back."""
    it = model._model
    known: dict[str, Any] = {"version": __version__, "parameters": asdict(it.settings)}
    if isinstance(it.parts.objective.loss, Nested):
        known["prefixes"] = list(it.parts.objective.loss.prefixes)
    return known if it.fitted.columns is None else {**known, "columns": it.fitted.columns}


def columns_in(known: Any, n_features: int) -> list[str] | None:
    """The columns' names among what `facts` gave, if they are that many names."""
    names = known.get("columns") if isinstance(known, dict) else None
    named = isinstance(names, list) and len(names) == n_features and all(isinstance(name, str) for name in names)
    return names if named else None


def prefixes_in(known: Any, n_units: int) -> tuple[int, ...]:
    """The prefixes of the code among what `facts` gave, if they are whole numbers; the whole code is none."""
    found = known.get("prefixes") if isinstance(known, dict) else None
    if not isinstance(found, list) or not all(isinstance(m, int) and 1 <= m <= n_units for m in found):
        return ()
    return tuple(m for m in found if m < n_units)
