"""A fitted model in a few lines of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retell.estimator import Autoencoder

__all__ = ["aligned", "facts", "network", "share"]


def facts(model: Autoencoder) -> dict[str, str]:
    """What a fitted model is and how good, label by label.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from retell import Autoencoder
    >>> from retell.report.summary import facts
    >>> facts(Autoencoder(8, hidden_layer_sizes=()).fit(load_digits().data))["network"]
    '64 → 8 → 64, linear'
    """
    fitted = model._model.fitted
    settings, parts = model._model.settings, model._model.parts
    said = {"code": f"{model.n_components_} units", "network": network(model), "objective": repr(parts.objective)}
    if settings.corruption != "Nothing()":
        said["corruption"] = settings.corruption
    if fitted.constraint != "Free()":
        said["constraint"] = fitted.constraint
    if fitted.origin:
        return said | {"from": f"{fitted.origin}; it has seen no rows"}
    epochs = "closed form" if fitted.solver == "exact" else f"{fitted.n_iter:,} epoch{'s' * (fitted.n_iter != 1)}"
    if fitted.best_iter == 0:
        epochs += ", none better than the start, which was kept"
    if fitted.stopped_by == "max_time":
        epochs += f", ended by max_time = {settings.max_time:g} s"
    if fitted.n_left_out:
        said["left out"] = f"{fitted.n_left_out:,} rows by max_norm = {settings.max_norm:g}"
    if fitted.dialled:
        said["dialled"] = fitted.dialled
    judged = "held-out variance" if fitted.n_held_out else "training variance"
    return said | {
        "trained": epochs,
        "explained": f"{share(fitted.score)} of {judged} (PCA, {model.n_components_} units: {share(fitted.pca_score)})",
    }


def network(model: Autoencoder) -> str:
    """Widths from input to output and what stands between them."""
    fitted, settings = model._model.fitted, model._model.settings
    widths = [fitted.n_features, *fitted.encoder, fitted.n_components, *fitted.decoder, fitted.n_features]
    text = " → ".join(f"{width:,}" for width in widths)
    deep = bool(fitted.encoder or fitted.decoder)
    beside = ", a linear path beside" if deep and settings.linear_path else ""
    text += f", {settings.activation if deep else 'linear'}{beside}"
    if settings.code_activation != "Identity()":
        text += f", code {settings.code_activation}"
    return text + (", tied" if settings.tied else "")


def share(value: float) -> str:
    """A share as a percentage.

    Examples
    --------
    >>> from retell.report.summary import share
    >>> share(0.86421), share(0.99998)
    ('86.4 %', '99.998 %')
    """
    digits = 1 if value < 0.99 else 3
    return f"{100 * value:.{digits}f} %"


def aligned(lines: Mapping[str, str], width: int = 80) -> str:
    """Labels in one column, texts in the other, folded to a width; a text without spaces is left whole.

    Examples
    --------
    >>> from retell.report.summary import aligned
    >>> print(aligned({"rows": "1,797 x 64", "code": "8 units"}))
    rows  1,797 x 64
    code  8 units
    """
    margin = max(map(len, lines)) + 2
    return "\n".join(
        textwrap.fill(
            text,
            width,
            initial_indent=f"{label:<{margin}}",
            subsequent_indent=" " * margin,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for label, text in lines.items()
    )
