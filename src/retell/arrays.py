"""What stands for an array, as one, and what NumPy says of them."""

from __future__ import annotations

from contextvars import Context, copy_context
from functools import partial
from typing import Any

import numpy as np

__all__ = ["as_numpy", "overflowing", "silence"]

overflowing = partial(np.errstate, over="ignore", invalid="ignore")
"""In silence, as torch's products: that numbers are not finite is told once, in words, by who looks at the outcome."""


def silence() -> Context:
    """The same for whatever its `run` calls: made once, for what is called so often that a microsecond counts."""
    context = copy_context()
    context.run(np.seterr, over="ignore", invalid="ignore")
    return context


def as_numpy(X: Any) -> Any:
    """X, but a tensor as an array, of bfloat16 as float32, and a masked array with NaN for masked cells."""
    if hasattr(X, "detach"):
        X = X.detach().cpu()
        return (X.float() if str(X.dtype) == "torch.bfloat16" else X).numpy()
    if not isinstance(X, np.ma.MaskedArray) or X.dtype.kind not in "biuf":
        return X
    # a masked cell was not seen, whatever lies under it
    floats = X.astype(X.dtype if X.dtype.kind == "f" else np.float64)
    return np.ma.filled(floats, np.nan)
