"""Warnings that name the line which called retell, not one inside it."""

from __future__ import annotations

import inspect
import warnings

__all__ = ["warn"]

INSIDE = "retell", "sklearn"  # which wraps transform, and calls fit for a pipeline


def warn(message: str) -> None:
    """Issue a UserWarning on behalf of the nearest caller that is outside."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
