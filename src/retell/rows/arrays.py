"""Rows that are already in memory: arrays and frames, refused with a sentence where they are not numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retell.notice import warn

__all__ = [
    "check_finite", "check_kinds", "check_order", "check_support", "column_label", "column_labels",
    "column_names", "column_words", "warn_rounded",
]  # fmt: skip

Array = npt.NDArray[Any]

KINDS = {"M": "dates", "m": "durations", "c": "complex numbers", "U": "text", "S": "bytes", "T": "text", "V": "records"}
LONG = ("int64", "uint64")
EXACT = 2**53  # up to which all whole numbers are floats


def check_kinds(X: Any) -> None:
    """Refuse columns that hold something other than numbers, by name.

    Raises
    ------
    ValueError
        If an array or a column of a frame holds dates, durations, text, complex numbers or records.
    """
    if hasattr(X, "columns") and hasattr(X, "dtypes"):
        for j, (name, dtype) in enumerate(zip(X.columns, X.dtypes, strict=True)):
            if str(dtype).lower().split("[")[0] in LONG:
                column = X.iloc[:, j].dropna() if hasattr(X, "iloc") else X[name].drop_nulls()
                warn_rounded(f"column {name!r}", *((column.min(), column.max()) if len(column) else (0, 0)))
            if _kind(dtype) not in "biuf":
                raise ValueError(
                    f"column {name!r} holds {_describe(dtype)}, numbers were expected: encode it or leave it out"
                )
        return
    dtype = getattr(X, "dtype", None)
    if isinstance(X, np.ndarray) and str(dtype) in LONG and X.ndim == 2 and X.size:
        for j, (low, high) in enumerate(zip(X.min(0), X.max(0), strict=True)):
            warn_rounded(f"column {j}", low, high)
    if isinstance(dtype, np.dtype) and dtype.kind in KINDS:
        # scikit-learn's own words for complex rows and text, which its users may match
        known = {"c": "Complex data not supported. ", "U": "could not convert string to float. "}.get(dtype.kind, "")
        raise ValueError(f"{known}X holds {KINDS[dtype.kind]} (dtype {dtype}), numbers were expected")
    if isinstance(X, np.ndarray) and X.dtype.kind == "O" and X.ndim == 2:
        for (row, column), value in np.ndenumerate(X):
            if isinstance(value, str | bytes):
                raise ValueError(
                    f"X holds text: could not convert string to float: {value!r} in row {row}, column {column}"
                )


def check_order(X: Any, expected: Any, called: str) -> None:
    """Refuse a frame whose columns have the expected names in another order; other names are taken as they come."""
    names = column_names(X) or []
    if len(names) == len(expected) and names != list(expected) and set(names) == set(expected):
        j = next(j for j, (name, right) in enumerate(zip(names, expected, strict=True)) if name != right)
        raise ValueError(
            f"the columns of these {called} are in another order: column {j} is {names[j]!r}, {expected[j]!r} was"
            " expected"
        )


def column_names(X: Any) -> list[str] | None:
    """The columns' names of a frame, where all are text, as scikit-learn has it."""
    names = list(getattr(X, "column_names", getattr(X, "columns", ())))
    return names if names and all(isinstance(name, str) for name in names) else None


def column_words(names: Sequence[str] | None, width: int) -> list[str]:
    """What so many columns are called in a table, whether they have names or not."""
    return [f"x{i}" for i in range(width)] if names is None else list(names)


def warn_rounded(name: str, low: Any, high: Any) -> None:
    """Warn where whole numbers of a column, from low to high, are beyond those that float64 tells apart."""
    if max(-int(low), int(high)) > EXACT:
        warn(
            f"{name} holds whole numbers from {low} to {high}, which are rounded: beyond 2**53 floats do not tell them"
            " apart. Leave it out if it only names rows, else subtract the least",
        )


def check_finite(X: Array, names: Any = None, *, called: str = "X", first: int = 0) -> None:
    """Refuse infinities, naming row (the first has the number `first`) and column; NaN passes, as an unseen cell."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(X.sum()) or not np.isinf(X).any():
            return
    row, column = np.argwhere(np.isinf(X))[0]
    raise ValueError(
        f"{called} has an infinite value (inf) in row {first + row}, {column_label(column, names)}: infinity is not a"
        " number to learn from; replace it, or put NaN there if the value is unknown"
    )


def check_support(X: Array, support: tuple[float, float], loss: Any, names: Any = None, *, first: int = 0) -> None:
    """Refuse rows outside the support of the loss, naming the cell."""
    low, high = support
    with np.errstate(invalid="ignore"):
        outside = (X < low) | (X > high)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise ValueError(
            f"{loss!r} needs values in [{low:g}, {high:g}], but row {first + row}, {column_label(column, names)} is"
            f" {X[row, column]:g}: scale the rows into that range or use MSE()"
        )


def column_label(column: int, names: Any = None) -> str:
    """How a message calls a column."""
    return f"column {column}" if names is None else f"column {column} ({names[column]!r})"


def column_labels(columns: Array, names: Any = None) -> str:
    """How a message calls columns: the first few of them."""
    said = ", ".join(column_label(int(column), names) for column in columns[:3])
    return said if len(columns) <= 3 else f"{said} ..."


def _kind(dtype: Any) -> str:
    if hasattr(dtype, "is_numeric"):  # polars
        return "f" if dtype.is_numeric() or str(dtype) == "Boolean" else str(dtype)
    if getattr(dtype, "kind", "O") == "O" and str(dtype) == "object":
        return "f"  # may hold numbers; what does not convert is refused later
    return str(getattr(dtype, "kind", "O"))


def _describe(dtype: Any) -> str:
    said = str(dtype).lower()
    kind = "U" if said in ("str", "string") else str(getattr(dtype, "kind", ""))
    what = "categories" if said.startswith(("categor", "enum")) else KINDS.get(kind, "no numbers")
    return f"{what} (dtype {dtype})"
