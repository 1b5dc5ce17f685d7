"""Rows on disk: one reader and one writer a kind of file, chosen by suffix. Nothing is ever unpickled."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from retell.notice import warn
from retell.rows.arrays import warn_rounded
from retell.rows.blocks import POOL
from retell.rows.mapped import map_npy, map_npz
from retell.rows.shards import open_folder, open_tensor

__all__ = ["check_data", "check_suffix", "read_rows", "replacing", "room_for", "write_rows"]

Array = npt.NDArray[Any]

ENOUGH = 100  # rows that tell what the others are like
FEW = 4  # columns that a message names, at most
MARKS = "?", "-", "--", "*", ".", "missing", "unknown", "none"  # that people put where they know no number
CHANCE = 1e-3  # up to which a first row is not taken for one of the others


def read_rows(path: str | os.PathLike[str]) -> Any:
    """The rows of a file, as the estimator takes them.

    Parameters
    ----------
    path : path
        .npy, .npz (its only array, or the one called X), .safetensors (its only tensor, or the one called X or
        activations), .csv (also with semicolons, and then decimal commas, or tabs) or .parquet; or a folder of the
        first three, whose files, in the order of their names, hold some rows each. Arrays are mapped into memory, not
        read, unless they are compressed.

    Returns
    -------
    ndarray, Shards or pyarrow.Table
        Shards of a folder, and of bfloat16. A table where columns have names; its columns are floats, NaN where a
        cell was empty.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is empty, of another kind, or holds something other than numbers; the message says where.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from retell.rows.files import read_rows, write_rows
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_rows(f"{folder}/x.csv", np.array([[1.0, np.nan]]), ["height", "weight"])
    ...     table = read_rows(f"{folder}/x.csv")
    >>> table.column_names, np.asarray(table)
    (['height', 'weight'], array([[ 1., nan]]))
    """
    path = Path(path)
    check_data(path)
    if path.is_dir():
        return open_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    return READERS[path.suffix.lower()](path)


def write_rows(path: str | os.PathLike[str], rows: Array, names: Sequence[str]) -> None:
    """Write rows to a file, all or nothing; an older file is replaced.

    Parameters
    ----------
    path : path
        The suffix says which kind: .npy, .npz and .safetensors (the array is called X), .csv or .parquet.
    rows : ndarray of shape (N, D) or (N,)
    names : sequence of str
        The columns' names; .npy and .npz have no place for them.
    """
    path = Path(path)
    check_suffix(path)
    with replacing(path) as new:
        WRITERS[path.suffix.lower()](new, rows, names)


def check_data(path: Path) -> None:
    """Refuse a path that is neither a folder nor one of a kind of file known here."""
    if path.is_dir():
        return
    if not path.exists() and path.suffix.lower() not in READERS:
        raise FileNotFoundError(f"there is no file or folder {path}")
    check_suffix(path)


def check_suffix(path: Path) -> None:
    """Refuse a path whose suffix is no kind of file known here, or whose kind needs a package that is missing."""
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise ValueError(f"{path} ends in {suffix or 'nothing'!r}: one of {', '.join(READERS)} was expected")
    if suffix in (".csv", ".parquet"):
        _pyarrow("csv" if suffix == ".csv" else "parquet")


@contextmanager
def room_for(path: Path, shape: tuple[int, int], dtype: npt.DTypeLike) -> Iterator[Array]:
    """Rows of a .npy file that are written as they are made; all or nothing, as `write_rows`."""
    with replacing(path) as new:
        rows = np.lib.format.open_memmap(new, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, and not when pages are written
            with new.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, new.stat().st_size)
        yield rows
        rows.flush()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block has ended well and removed otherwise."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _read_npy(path: Path) -> Array:
    return map_npy(path).values


def _read_npz(path: Path) -> Array:
    large = map_npz(path) if path.stat().st_size > POOL else None
    if large is not None:
        return large.values
    try:
        # A stream of our own: NumPy leaves the file open when it is no zip file.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError(f"{path} is a .npy file: rename it")
            names = archive.files
            if "X" not in names and {"format", "shape", "data"} <= set(names):
                raise ValueError(f"{path} holds a sparse matrix, as of codes: rows were expected, whole")
            if len(names) != 1 and "X" not in names:
                found = ", ".join(names) or "none"
                raise ValueError(f"{path} holds the arrays {found}: one array, or one called X, was expected")
            rows = archive["X" if "X" in names else names[0]]
    except (BadZipFile, EOFError) as error:
        raise ValueError(f"{path} can't be read as .npz: {error}") from None
    except ValueError as error:
        if "pickle" in str(error):
            raise ValueError(f"{path} is no .npz of numbers: it holds Python objects or is another kind") from None
        raise
    if not isinstance(rows, np.ndarray):  # the archive holds a file that is no array
        raise ValueError(f"{path} can't be read as .npz: it is a zip file without arrays")
    return rows


def _read_csv(path: Path) -> Any:
    pa, csv = _pyarrow(), _pyarrow("csv")
    separator, point = _separators(path)
    layout = {
        "parse_options": csv.ParseOptions(delimiter=separator),
        "convert_options": csv.ConvertOptions(decimal_point=point),
    }
    try:
        names = [name.strip() for name in csv.open_csv(path, **layout).schema.names]
        # A first row of numbers is a row, unless it counts 0, 1, 2 ... as pandas does for columns without names.
        filled = [name for name in names if name]  # a row may have holes, and an index no name
        bare = all(_is_number(name, point) for name in filled) and filled != [str(i) for i in range(len(filled))]
        table = csv.read_csv(path, read_options=csv.ReadOptions(autogenerate_column_names=bare), **layout)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} can't be read as .csv: {error}") from None
    table = _as_floats(table if bare else table.rename_columns(names), path, point)
    if not bare:
        return table
    rows = np.asarray(table)
    if not _is_no_row(rows[0], rows[1:]):
        return rows
    shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    warn(
        f"{path}: its first row, {shown}, is taken for the columns' names: it goes up or down all along, as the rows"
        " below do not, and lies outside of every column. If it is a row, put one of names above it",
    )
    return table.slice(1).rename_columns(names)


def _separators(path: Path) -> tuple[str, str]:
    """What the first lines have between columns and before decimals: a comma and a point, if nothing else is clear."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        lines = [line for line in islice(stream, ENOUGH) if line.strip()]
    for separator in ";\t":
        if len(counts := {line.count(separator) for line in lines}) == 1 and counts != {0}:
            # beside tabs, commas may be those of 1,234: such cells are text
            return separator, "," if separator == ";" and any(re.search(r"\d,\d", line) for line in lines) else "."
    return ",", "."


def _is_no_row(first: Array, others: Array) -> bool:
    """Whether a first row of numbers is none, as years or wavelengths are: one of the others would hardly be so."""
    n, D = others.shape
    if n == 0 or D == 1 or np.isnan(first).any():
        return False
    up = np.sign(first[-1] - first[0])
    if not ((up * np.diff(first) > 0).all() and _outside(first, others).all()):
        return False
    if n > 1 and _outside(others[0], others[1:]).mean() > 0.5:  # the rows are sorted
        return False
    alike = (up * np.diff(others[:ENOUGH], axis=1) > 0).all(1).mean()
    chance = math.log(2) - math.lgamma(D + 1) + D * math.log(2 / (n + 1))  # of both, were all orders as likely
    return bool(alike < 0.5 and chance < math.log(CHANCE))


def _outside(row: Array, others: Array) -> Array:
    """Where a row is beyond all others; also where those have no value."""
    within: Array = (np.fmin.reduce(others) <= row) & (row <= np.fmax.reduce(others))
    return ~within


def _read_parquet(path: Path) -> Any:
    pa = _pyarrow()
    try:
        table = _pyarrow("parquet").read_table(path)
        index = (table.schema.pandas_metadata or {}).get("index_columns", [])  # of a frame: no column of it
        return _as_floats(table.drop_columns([name for name in index if name in table.column_names]), path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} can't be read as .parquet: {error}") from None


def _as_floats(table: Any, path: Path, point: str = ".") -> Any:
    """The table with columns of floats, or a sentence that names the column that can't be one."""
    pa = _pyarrow()
    names = table.column_names
    for i, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"{path}: column {i} has no name; name it, or leave it out if it is an index")
        if name in names[:i]:
            raise ValueError(f"{path}: two columns are called {name!r}")
    if table.num_rows == 0:
        raise ValueError(f"{path} has no rows")
    columns = []
    strange = [name for name, kind in zip(names, table.schema.types, strict=True) if not _is_numeric(pa, kind)]
    if strange:
        said, remedy = _strange(strange[0], table.column(strange[0]), point)
        others = f" (nor are {', '.join(map(repr, strange[1:FEW]))}{', ...' * (len(strange) > FEW)} numbers)"
        raise ValueError(f"{path}: {said}{others * (len(strange) > 1)}; numbers were expected: {remedy}")
    for name, column in zip(names, table.columns, strict=True):
        kind = column.type
        if not (pa.types.is_floating(kind) and kind.bit_width >= 32):
            if pa.types.is_integer(kind) and kind.bit_width == 64:
                extent = _pyarrow("compute").min_max(column).as_py()
                warn_rounded(f"{path}: column {name!r}", extent["min"] or 0, extent["max"] or 0)
            column = column.cast(pa.float64(), safe=False)
        columns.append(column.fill_null(float("nan")))
    return pa.table(columns, names=names)


def _is_numeric(pa: Any, kind: Any) -> bool:
    known = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)
    return any(test(kind) for test in known)


def _strange(name: str, column: Any, point: str) -> tuple[str, str]:
    """What a column holds in the place of numbers, and where first; and what to do."""
    kind = str(column.type)
    empty = [None, *_pyarrow("csv").ConvertOptions().null_values]  # they are none where the others are numbers
    for row, value in enumerate(column.to_pylist()):
        if value not in empty and not (isinstance(value, str) and _is_number(value, point)):
            what = "text" if isinstance(value, str) else kind
            mark = str(value).strip().lower() in MARKS
            remedy = "if that stands for a missing one, leave such cells empty" if mark else "encode it or leave it out"
            return f"column {name!r} holds {what}, {str(value)!r} in row {row}", remedy
    return f"column {name!r} holds {kind}", "encode it or leave it out"


def _is_number(text: str, point: str) -> bool:
    if point != "." and "." in text:
        return False
    try:
        float(text.replace(point, "."))
    except ValueError:
        return False
    return True


def _write_npy(path: Path, rows: Array, names: Sequence[str]) -> None:  # noqa: ARG001
    with path.open("wb") as stream:
        np.save(stream, rows, allow_pickle=False)


def _write_npz(path: Path, rows: Array, names: Sequence[str]) -> None:  # noqa: ARG001
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, X=rows)


def _write_safetensors(path: Path, rows: Array, names: Sequence[str]) -> None:  # noqa: ARG001
    from safetensors.numpy import save

    path.write_bytes(save({"X": np.ascontiguousarray(rows)}))


def _write_csv(path: Path, rows: Array, names: Sequence[str]) -> None:
    _pyarrow("csv").write_csv(_table(rows, names), path)


def _write_parquet(path: Path, rows: Array, names: Sequence[str]) -> None:
    _pyarrow("parquet").write_table(_table(rows, names), path)


def _table(rows: Array, names: Sequence[str]) -> Any:
    columns = np.ascontiguousarray(rows.reshape(len(rows), -1).T)
    return _pyarrow().table(list(columns), names=list(names))


def _pyarrow(module: str = "") -> Any:
    """pyarrow, or a module of it; imported here because only .csv and .parquet need it."""
    from importlib import import_module

    try:
        found: ModuleType = import_module(f"pyarrow.{module}" if module else "pyarrow")
    except ImportError:
        raise ImportError(".csv and .parquet files need pyarrow: pip install 'retell[files]'") from None
    return found


READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": open_tensor,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
WRITERS: dict[str, Callable[[Path, Array, Sequence[str]], None]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
