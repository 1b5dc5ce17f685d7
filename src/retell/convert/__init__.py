"""Models as other libraries keep them, both ways, their outputs compared at every conversion.

`saelens` and `sparsify` have `write(model, path)` and `read(path)`, `dictionary_learning` has `read`. The `read` of
this package finds out which of them wrote a folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from retell.convert import dictionary_learning, saelens, sparsify
from retell.convert.equality import Equality
from retell.estimator import Autoencoder
from retell.store import ModelFileError

__all__ = ["Equality", "dictionary_learning", "read", "read_compared", "saelens", "sparsify", "write"]

FORMATS: dict[str, Any] = {"saelens": saelens, "sparsify": sparsify, "dictionary_learning": dictionary_learning}


def write(model: Autoencoder, path: str | os.PathLike[str], *, to: str, dtype: str = "float32") -> Equality:
    """Write a fitted model as a folder of another library.

    Parameters
    ----------
    model : Autoencoder
    path : path
        The folder. Its parent must exist.
    to : {"saelens", "sparsify"}
    dtype : {"float32", "float64"}, default="float32"

    Returns
    -------
    Equality
        By how much the folder, read back, differs from the model: at most 1e-6, relative.

    Raises
    ------
    ValueError
        If that library has no place for the model, or the outputs would differ; nothing is written then.
    FileExistsError
        If something else stands at `path`.
    """
    if to not in ("saelens", "sparsify"):
        raise ValueError(f"to={to!r} is not possible: 'saelens' or 'sparsify' was expected")
    equality: Equality = FORMATS[to].write(model, path, dtype=dtype)
    return equality


def read(path: str | os.PathLike[str]) -> Autoencoder:
    """The fitted `Autoencoder` that a folder of SAELens, sparsify or dictionary_learning holds.

    Parameters
    ----------
    path : path

    Raises
    ------
    ModelFileError
        If the folder is none of these, or of a kind that retell can't express; the message says which.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_digits
    >>> from retell import Autoencoder, convert
    >>> X = load_digits().data
    >>> model = Autoencoder(96, code_activation="BatchTopK(8)", max_iter=2, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = convert.write(model, f"{folder}/sae", to="saelens")
    ...     convert.read(f"{folder}/sae").code_activation
    'BatchTopK(8)'
    """
    return read_compared(path)[0]


def read_compared(path: str | os.PathLike[str]) -> tuple[Autoencoder, Equality]:
    """As `read`, with how far the model differs from the folder."""
    path = Path(path)
    found = _format(path)
    if found is None:
        raise ModelFileError(_why_none(path))
    model, equality = FORMATS[found].read_compared(path)
    return model, equality


def _format(path: Path) -> str | None:
    """Which library wrote a folder, by the files that it must have."""
    for name, format in FORMATS.items():
        if all((path / file).is_file() for file in format.FILES):
            return name
    return None


def _why_none(path: Path) -> str:
    if not path.is_dir():
        return f"there is no folder {path}"
    if (path / "model.toml").is_file():
        return f"{path} is a retell model already: retell.load reads it"
    inside = sorted(some.name for some in path.iterdir() if some.is_dir() and _format(some) is not None)
    if inside:
        return f"{path} holds several models: choose one of {', '.join(inside[:8])}"
    wanted = "; ".join(f"{name}: {' and '.join(format.FILES)}" for name, format in FORMATS.items())
    return f"{path} is of none of the formats that can be read ({wanted})"
