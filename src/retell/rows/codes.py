"""Sparse codes on disk: SciPy's compressed rows in a .npz file, as `scipy.sparse.save_npz` writes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from scipy.sparse import csr_array, load_npz, save_npz

from retell.rows.files import read_rows, replacing

__all__ = ["check_sparse", "read_codes", "write_codes"]


def read_codes(path: str | os.PathLike[str]) -> Any:
    """The codes of a file: as `read_rows` has them, but those of `write_codes` as a csr_array.

    Parameters
    ----------
    path : path
        A .npz file of `scipy.sparse.save_npz`, of compressed rows; or a file or folder of `read_rows`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file can't be read, holds another kind of sparse matrix, or numbers of rows or units that can't be.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from scipy.sparse import csr_array
    >>> from retell.rows.codes import read_codes, write_codes
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_codes(f"{folder}/h.npz", csr_array(np.eye(3)))
    ...     h = read_codes(f"{folder}/h.npz")
    >>> h.shape, h.nnz
    ((3, 3), 3)
    """
    path = Path(path)
    if not _is_sparse(path):
        return read_rows(path)
    try:
        found = load_npz(path)
        if found.format != "csr":
            raise ValueError(f"it is in the format {found.format!r}: compressed rows were expected, as tocsr() gives")
        codes = csr_array(found)
        codes.check_format(full_check=True)  # what reads them trusts their numbers
    except (KeyError, OSError, EOFError, BadZipFile, TypeError, ValueError) as error:
        raise ValueError(f"{path} can't be read as sparse codes: {error}") from None
    return codes


def write_codes(path: str | os.PathLike[str], codes: csr_array) -> None:
    """Write codes (N, K) to a .npz file for `scipy.sparse.load_npz`, all or nothing; an older file is replaced.

    Raises
    ------
    ValueError
        If the path does not end in .npz.
    """
    path = Path(path)
    check_sparse(path)
    with replacing(path) as new, new.open("wb") as stream:
        save_npz(stream, codes, compressed=False)


def check_sparse(path: Path) -> None:
    """Refuse a path that is no .npz, the only kind that holds sparse codes."""
    if path.suffix.lower() != ".npz":
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'!r}: sparse codes are written to .npz")


def _is_sparse(path: Path) -> bool:
    """Whether a file is a .npz with the parts of a sparse matrix."""
    if path.suffix.lower() != ".npz" or not path.is_file():
        return False
    try:
        with ZipFile(path) as archive:
            return {"format.npy", "shape.npy", "data.npy"} <= set(archive.namelist())
    except (BadZipFile, OSError):
        return False  # `read_rows` says what is wrong with it
