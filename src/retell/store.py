"""A model on disk: `model.toml`, which a person can read, and `weights.safetensors`. No pickle, no code.

Everything is written under a temporary name, synced and then renamed: a reader sees the old model or the
new one. The last line of `model.toml` seals both files, so that a truncated or edited model is refused.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = [
    "FORMAT",
    "CheckpointError",
    "ModelFileError",
    "read_checkpoint",
    "read_model",
    "read_tensors",
    "write_checkpoint",
    "write_model",
]

FORMAT = 1
SEAL = re.compile(rb"\n# sha256 of what stands above, and of the weights: ([0-9a-f]{64})\n\Z")
Shapes = Mapping[str, tuple[int, ...]]


class ModelFileError(ValueError):
    """A model folder is missing, damaged, edited, or of a format that this version does not know."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, or belongs to other rows or other settings."""


def write_model(path: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a model folder, all or nothing; an older model at `path` is replaced in one step.

    Parameters
    ----------
    path : path
        The folder. Its parent must exist.
    config : mapping
        What TOML can hold; `format` is added.
    tensors : mapping of str to Tensor

    Raises
    ------
    FileExistsError
        If something that is not a model stands at `path`.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not (path / "model.toml").is_file():
        raise FileExistsError(f"{path} exists and is not a retell model: choose another name")
    weights = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    text = tomli_w.dumps({"format": FORMAT, **config}).encode()
    seal = hashlib.sha256(text + weights).hexdigest()
    text += f"\n# sha256 of what stands above, and of the weights: {seal}\n".encode()
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        new.chmod(0o777 & ~_umask())
        for name, content in (("weights.safetensors", weights), ("model.toml", text)):
            _write(new / name, content)
        _sync(new)
        if path.exists():
            _exchange(new, path)
        else:
            new.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def read_model(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of a model folder, after both files have been checked against their seal.

    Raises
    ------
    ModelFileError
    """
    path = Path(path)
    text = _read(path, "model.toml")
    try:
        config = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileError(f"{path / 'model.toml'} is not valid TOML: {error}") from None
    format = config.get("format")
    if not isinstance(format, int) or isinstance(format, bool) or format < 1:
        raise ModelFileError(f"{path / 'model.toml'} has format = {format!r}, a number from 1 on was expected")
    if format > FORMAT:
        raise ModelFileError(
            f"{path} was written in format {format} by a newer retell, this one reads up to {FORMAT}: upgrade retell"
        )
    seal = SEAL.search(text)
    digest = hashlib.sha256((text[: seal.start()] if seal else b"") + _read(path, "weights.safetensors"))
    if seal is None or seal.group(1).decode() != digest.hexdigest():
        raise ModelFileError(f"{path} is damaged or was edited: its files do not match the seal in model.toml")
    del config["format"]
    return config


def read_tensors(path: str | os.PathLike[str], shapes: Shapes) -> dict[str, Tensor]:
    """The tensors of a model folder, names and shapes checked before anything is allocated.

    Raises
    ------
    ModelFileError
    """
    file = Path(path) / "weights.safetensors"
    try:
        with safe_open(str(file), framework="pt") as weights:
            found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
            wanted = {name: tuple(shape) for name, shape in shapes.items()}
            if found != wanted:
                wrong = sorted(name for name in found.keys() | wanted if found.get(name) != wanted.get(name))
                raise ModelFileError(
                    f"{file} does not fit model.toml: {wrong[0]} is {found.get(wrong[0], 'missing')},"
                    f" expected {wanted.get(wrong[0], 'none')}"
                )
            return {name: weights.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{file} can't be read: {error}") from None


def write_checkpoint(folder: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the state of a fit into `folder`, one file, all or nothing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"fit": json.dumps(config)})
    handle, name = tempfile.mkstemp(prefix=".checkpoint.", dir=folder)
    os.close(handle)
    try:
        _write(Path(name), hashlib.sha256(content).digest() + content)
        os.replace(name, folder / "checkpoint.retell")
        _sync(folder)
    finally:
        Path(name).unlink(missing_ok=True)


def read_checkpoint(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What `write_checkpoint` wrote, or None if there is none.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """
    file = Path(folder) / "checkpoint.retell"
    if not file.is_file():
        return None
    content = file.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise CheckpointError(f"{file} is damaged: remove it to start from the beginning")
    from safetensors.torch import load

    size = int.from_bytes(content[32:40], "little")
    config: dict[str, Any] = json.loads(json.loads(content[40 : 40 + size])["__metadata__"]["fit"])
    return config, load(content[32:])


def remove_checkpoint(folder: str | os.PathLike[str]) -> None:
    """Remove the checkpoint of a fit that has ended, and its folder if nothing else is in it."""
    folder = Path(folder)
    for file in [folder / "checkpoint.retell", *folder.glob(".checkpoint.*")]:
        file.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _read(path: Path, name: str) -> bytes:
    if not path.exists():
        raise ModelFileError(f"there is no model at {path}")
    if not path.is_dir():
        raise ModelFileError(f"{path} is not a model: a folder with model.toml was expected")
    try:
        return (path / name).read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} is not a complete model: {name}: {error.strerror}") from None


def _write(file: Path, content: bytes) -> None:
    with open(file, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    file.chmod(0o666 & ~_umask())


def _sync(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders in one step where the system can, else by two renames."""
    at_cwd, exchange = -100, 2
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or rename(at_cwd, os.fsencode(new), at_cwd, os.fsencode(old), exchange) != 0:
        aside = new.with_name(new.name + ".old")
        old.rename(aside)
        new.rename(old)
        shutil.rmtree(aside)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
