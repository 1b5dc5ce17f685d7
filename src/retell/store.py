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
import secrets
import shutil
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from retell import __version__

__all__ = [
    "FORMAT",
    "CheckpointError",
    "ModelFileError",
    "check_parent",
    "read_checkpoint",
    "read_model",
    "read_tensors",
    "write_checkpoint",
    "write_folder",
    "write_model",
]

FORMAT = 1
VERSION = "retell"  # key of the version that wrote a checkpoint
FILES = ("weights.safetensors", "model.toml")
SEAL = re.compile(rb"\n# sha256 of what stands above, and of the weights: ([0-9a-f]{64})\n\Z")
Kind = tuple[tuple[int, ...], str]


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
        If something that is not a model, or holds more than one, stands at `path`.
    """
    weights = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    text = tomli_w.dumps({"format": FORMAT, **config}).encode()
    seal = hashlib.sha256(text + weights).hexdigest()
    text += f"\n# sha256 of what stands above, and of the weights: {seal}\n".encode()
    write_folder(path, dict(zip(FILES, (weights, text), strict=True)), "retell model")


def check_parent(path: Path) -> None:
    """Raise FileNotFoundError where a folder can't be made for want of the one that it is to be in."""
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path} can't be written: there is no folder {path.absolute().parent}")


def write_folder(
    path: str | os.PathLike[str],
    files: Mapping[str, bytes],
    kind: str,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a folder of files, all or nothing; an older one of its kind is replaced in one step.

    Parameters
    ----------
    path : path
        The folder. Its parent must exist.
    files : mapping of str to bytes
        Contents by name; the last is what such a folder is known by.
    kind : str
        What it is, for messages.
    check : callable, optional
        Is given the new folder under its temporary name; if it raises, nothing stays.

    Raises
    ------
    FileNotFoundError
        Without a parent.
    FileExistsError
        If something that is no such folder, or holds more than one, stands at `path`.
    """
    path = Path(os.path.realpath(path))
    check_parent(path)
    if path.exists() and not (path / list(files)[-1]).is_file():
        raise FileExistsError(f"{path} exists and is not a {kind}: choose another name")
    others = set(os.listdir(path)) - set(files) if path.exists() else set()
    if others:  # the folder is replaced as a whole: what someone else put there would be lost
        raise FileExistsError(f"{path} holds more than a {kind} ({min(others)}): choose another name")
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    new.mkdir()
    try:
        for name, content in files.items():
            _write(new / name, content)
        _sync(new)
        if check is not None:
            check(new)
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


def read_tensors(path: str | os.PathLike[str], wanted: Mapping[str, Kind]) -> dict[str, Tensor]:
    """The tensors of a model folder, names, shapes and types checked before anything is allocated.

    Parameters
    ----------
    path : path
    wanted : mapping of str to (shape, dtype)
        What model.toml says that there is; dtypes as safetensors calls them, "F32" or "F64".

    Raises
    ------
    ModelFileError
    """
    file = Path(path) / "weights.safetensors"
    try:
        with safe_open(str(file), framework="pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            found = {name: (tuple(some.get_shape()), some.get_dtype()) for name, some in slices.items()}
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
    """Write the state of a fit into `folder`, one file, all or nothing; the version of retell is added."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = save(
        {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
        {"fit": json.dumps({**config, VERSION: __version__})},
    )
    new = folder / ".checkpoint.new"  # one name: kills in the middle of writing leave one file, not many
    try:
        _write(new, hashlib.sha256(content).digest() + content)
        os.replace(new, folder / "checkpoint.retell")
        _sync(folder)
    finally:
        new.unlink(missing_ok=True)


def read_checkpoint(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What `write_checkpoint` wrote, or None if there is none.

    Raises
    ------
    CheckpointError
        If the file is damaged, or another version of retell wrote it: that may take other steps.
    """
    file = Path(folder) / "checkpoint.retell"
    if not file.is_file():
        return None
    content = file.read_bytes()
    try:
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError("its bytes do not match its seal")
        size = int.from_bytes(content[32:40], "little")
        config: dict[str, Any] = json.loads(json.loads(content[40 : 40 + size])["__metadata__"]["fit"])
        writer, state = config.pop(VERSION), load(content[32:])
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged ({error}): remove it to start from the beginning") from None
    if writer != __version__:
        raise CheckpointError(
            f"{file} was written by retell {writer}, this is {__version__}: go on with that version, or remove the file"
            " to start from the beginning"
        )
    return config, state


def remove_checkpoint(folder: str | os.PathLike[str]) -> None:
    """Remove the checkpoint of a fit that has ended, and its folder if nothing else is in it."""
    folder = Path(folder)
    for file in (folder / "checkpoint.retell", folder / ".checkpoint.new"):
        file.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _read(path: Path, name: str) -> bytes:
    if not os.path.lexists(path):
        raise ModelFileError(f"there is no model at {path}")
    if not os.path.isdir(path):
        raise ModelFileError(f"{path} is not a model: a folder with model.toml was expected")
    try:
        return (path / name).read_bytes()
    except OSError as error:
        if (path / "checkpoint.retell").is_file():
            raise ModelFileError(
                f"{path} is the checkpoint of a fit that has not ended: retell fit --resume {path}, or fit(X,"
                f" checkpoint={str(path)!r}), goes on with it"
            ) from None
        raise ModelFileError(f"{path} is not a complete model: {name}: {error.strerror}") from None


def _write(file: Path, content: bytes) -> None:
    with open(file, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


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
        try:
            new.rename(old)
        except BaseException:
            aside.rename(old)
            raise
        shutil.rmtree(aside)
