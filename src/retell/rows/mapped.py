"""Arrays of files, mapped into memory: what is read of a file is what is looked at, and none of it is copied."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
import numpy.typing as npt

__all__ = ["KINDS", "Mapped", "map_npy", "map_npz", "map_safetensors"]

Array = npt.NDArray[Any]

KINDS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}  # as .safetensors calls them
NAMES = "X", "activations"  # of the tensor that counts, where a file holds several


class Mapped(NamedTuple):
    """An array in a file."""

    values: Array
    """Read-only; numbers of bfloat16, for which NumPy has no type, as uint16."""
    kind: str
    """The name of its type, as in "bfloat16"."""


def map_npy(path: Path) -> Mapped:
    """The array of a .npy file.

    Raises
    ------
    ValueError
        If there is none, or it holds Python objects.
    """
    try:
        rows = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise ValueError(f"{path} can't be read as .npy: {error}") from None
    return Mapped(rows, rows.dtype.name)


def map_npz(path: Path) -> Mapped | None:
    """The only array of a .npz file, or the one called X; None where it is compressed, and so can't be mapped.

    Raises
    ------
    ValueError
        If there is no such array.
    """
    try:
        with ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    except BadZipFile as error:
        raise ValueError(f"{path} can't be read as .npz: {error}") from None
    if len(members) != 1 and "X" not in members:
        found = ", ".join(members) or "none"
        raise ValueError(f"{path} holds the arrays {found}: one array, or one called X, was expected")
    member = members["X"] if "X" in members else next(iter(members.values()))
    return _map_member(path, member) if member.compress_type == ZIP_STORED else None


def map_safetensors(path: Path) -> Mapped:
    """The only tensor of a .safetensors file, or the one called X or activations.

    Raises
    ------
    ValueError
        If the file is damaged, or holds no such tensor, or one of another type.
    """
    tensors, start = _safetensors_header(path)
    known = tensors if len(tensors) == 1 else NAMES
    name = next((name for name in known if name in tensors), "")
    if not name:
        found = ", ".join(tensors) or "none"
        raise ValueError(f"{path} holds the tensors {found}: one tensor, or one called X or activations, was expected")
    kind, shape, (first, last) = (tensors[name][key] for key in ("dtype", "shape", "data_offsets"))
    if kind not in KINDS:
        raise ValueError(f"{path} holds a tensor of {kind}: one of {', '.join(KINDS)} was expected")
    stored = np.dtype("<u2" if kind == "BF16" else KINDS[kind])
    if last - first != stored.itemsize * int(np.prod(shape)) or start + last > path.stat().st_size:
        raise ValueError(f"{path} is damaged: it is shorter than its header says")
    values = np.memmap(path, stored, "r", start + first, tuple(shape)) if last > first else np.empty(shape, stored)
    return Mapped(values, KINDS[kind])


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """What the header says of each tensor, and where the numbers begin."""
    with path.open("rb") as stream:
        head = stream.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        text = stream.read(size) if 0 < size <= path.stat().st_size - 8 else b""
    try:
        header = json.loads(text)
        tensors = {name: dict(entry) for name, entry in header.items() if name != "__metadata__"}
        for entry in tensors.values():
            _, _, (_, _) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} can't be read as .safetensors: it has no such header") from None
    return tensors, 8 + size


def _map_member(path: Path, member: ZipInfo) -> Mapped:
    """An uncompressed member of a zip file, which is a .npy file at an offset."""
    with path.open("rb") as stream:
        stream.seek(member.header_offset + 26)  # where the local header says how long the name and its extras are
        stream.seek(sum(struct.unpack("<HH", stream.read(4))), 1)
        try:
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = read(stream)
        except (ValueError, KeyError):
            raise ValueError(f"{path} can't be read as .npz: {member.filename} is no array") from None
        if dtype.hasobject:
            raise ValueError(f"{path} is no .npz of numbers: it holds Python objects or is another kind")
        offset = stream.tell()
    if not np.prod(shape):
        return Mapped(np.empty(shape, dtype), dtype.name)
    return Mapped(np.memmap(path, dtype, "r", offset, tuple(shape), "F" if fortran else "C"), dtype.name)
