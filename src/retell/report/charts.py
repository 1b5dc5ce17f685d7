"""Pictures of a fitted model. matplotlib is imported where it is used, and no global state of it is touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from retell.estimator import Autoencoder

__all__ = ["frontier", "loss_curve", "reconstructions"]

Array = npt.NDArray[Any]

# Okabe and Ito's blue and vermilion: told apart with every kind of colour vision.
OURS, PCA, INK, FAINT = "#0072B2", "#D55E00", "#222222", "#9A9A9A"
COLOURS = OURS, PCA, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK


def reconstructions(
    model: Autoencoder, X: Array, image_shape: tuple[int, int], path: str | os.PathLike[str], *, pca: Any
) -> None:
    """Draw rows as images above what PCA and the model make of them.

    Parameters
    ----------
    model : Autoencoder
        Fitted.
    X : ndarray of shape (N, D)
        Rows to draw, some twelve; best if none was used to fit.
    image_shape : (int, int)
        Height and width; their product is D.
    path : path
        A .png to write.
    pca : sklearn.decomposition.PCA
        Fitted to the rows that the model was fitted to, at the same K.
    """
    made = {
        "original": X,
        f"PCA\nK = {pca.n_components_}": pca.inverse_transform(pca.transform(X)),
        f"autoencoder\nK = {model.n_components_}": model.reconstruct(X),
    }
    low, high = np.nanmin(X), np.nanmax(X)
    height, width = image_shape
    n = len(X)
    figure = _figure(1.15 + 0.7 * n, 0.15 + 3 * 0.7 * height / width)
    grid = figure.subplots(3, n, squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 0.08})
    figure.subplots_adjust(left=1.1 / figure.get_figwidth(), right=0.99, top=0.97, bottom=0.03)
    for axes, (label, rows), colour in zip(grid, made.items(), (INK, PCA, OURS), strict=True):
        for ax, row in zip(axes, rows, strict=True):
            ax.imshow(np.reshape(row, image_shape), cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(color="#DDDDDD", linewidth=0.6)
        _row_label(axes[0], label, colour)
    figure.savefig(path)


def loss_curve(model: Autoencoder, path: str | os.PathLike[str]) -> None:
    """Draw the unexplained share of variance, 1 - R², of the held-out rows after each epoch, with PCA's line.

    A dot marks the epoch that was kept; epoch 0 is the start.

    Parameters
    ----------
    model : Autoencoder
        Fitted with early stopping, which holds rows out.
    path : path
        A .png to write.
    """
    scores = np.asarray(model.validation_scores_)
    if not len(scores):
        raise ValueError("the model was fitted without held-out rows: early_stopping=True holds some out")
    figure = _figure(7.2, 4.0)
    figure.subplots_adjust(left=0.1, right=0.8, top=0.88, bottom=0.13)
    ax = figure.subplots()
    # A log axis has no place for nothing at all.
    lost = np.maximum(1e-9, 1 - scores)
    kept, yardstick = (max(1e-9, 1 - it) for it in (model._model.fitted.score, model.pca_score_))
    K = model.n_components_
    ax.axhline(yardstick, color=PCA, linewidth=1.5, dashes=(5, 3))
    ax.plot(np.arange(1, len(lost) + 1), lost, color=OURS, linewidth=2)
    nearest = int(np.abs(lost - kept).argmin())
    # Where no epoch was better than the start, which is PCA's solution, that was kept: epoch 0.
    epoch = nearest + 1 if abs(lost[nearest] - kept) < 1e-3 * kept else 0
    ax.plot(epoch, kept, color=OURS, marker="o", clip_on=False)
    ax.set_yscale("log")
    ax.set_ylim(0.92 * min(lost.min(), kept, yardstick), 1.08 * max(lost.max(), kept, yardstick))
    _log_axis(ax.yaxis, lambda value, _: f"{100 * value:.3g} %")
    ax.set(xlabel="epoch", xlim=(0, max(2, len(lost))))
    ax.set_title("Held-out variance left unexplained", loc="left", fontsize=11, color=INK, pad=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#E6E6E6", linewidth=0.7)
    ax.set_axisbelow(True)
    high, low = sorted([(yardstick, f"PCA, K = {K}", PCA), (kept, f"autoencoder, K = {K}", OURS)])[::-1]
    _line_label(ax, *high, va="bottom" if high[0] < 1.08 * low[0] else "center")
    _line_label(ax, *low, va="top" if high[0] < 1.08 * low[0] else "center")
    figure.savefig(path)


def frontier(lines: Mapping[str, Sequence[tuple[float, float, str]]], judged: str) -> Figure:
    """Draw what is left unexplained against the active units of a row, both on logarithmic axes.

    Parameters
    ----------
    lines : mapping of str to sequence of (float, float, str)
        By name: L0, FVU and label of each point, all above 0.
    judged : str
        Which rows the figures are of.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is no point.
    """
    if not any(lines.values()):
        raise ValueError("there is nothing to draw: no setting was fitted, or none leaves anything unexplained")
    figure = _figure(7.2, 4.4)
    figure.subplots_adjust(left=0.1, right=0.97, top=0.88, bottom=0.13)
    ax = figure.subplots()
    ax.set(xscale="log", yscale="log", xlabel="active units of a row (L0)")
    for (name, points), colour in zip(lines.items(), cycle(COLOURS)):
        places = sorted((l0, fvu) for l0, fvu, _ in points)
        ax.plot(*zip(*places, strict=True), color=colour, marker="o", linewidth=2, label=name)
        for l0, fvu, label in points if len(lines) == 1 else ():
            ax.annotate(label, (l0, fvu), (6, 6), textcoords="offset points", color=INK, fontsize=8)
    if len(lines) > 1:
        ax.legend(frameon=False, fontsize=9)
    ax.margins(0.12)
    _log_axis(ax.xaxis, lambda value, _: f"{value:.3g}")
    _log_axis(ax.yaxis, lambda value, _: f"{100 * value:.3g} %")
    ax.set_title(f"Variance left unexplained, {judged}", loc="left", fontsize=11, color=INK, pad=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#E6E6E6", linewidth=0.7)
    ax.set_axisbelow(True)
    return figure


def _figure(width: float, height: float) -> Figure:
    """A figure of its own, drawn by Agg, not known to pyplot."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install 'retell[plot]'") from None
    how: dict[str, Any] = {"layout": "none"}  # whatever matplotlib was told elsewhere
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white", **how)
    FigureCanvasAgg(figure)
    return figure


def _log_axis(axis: Any, shown: Callable[[float, int | None], str]) -> None:
    """Ticks of a logarithmic axis that may be less than a decade long."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axis.set_major_formatter(FuncFormatter(shown))
    axis.set_minor_formatter(NullFormatter())
    axis.minorticks_off()


def _row_label(ax: Axes, text: str, colour: str) -> None:
    ax.text(-0.15, 0.5, text, transform=ax.transAxes, ha="right", va="center", color=colour, fontsize=10)


def _line_label(ax: Axes, y: float, name: str, colour: str, va: str) -> None:
    """A line's name and value, right of the axes."""
    text = f"{name}\n{100 * y:.1f} %"
    ax.annotate(
        text, (1, y), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
        color=colour, va=va, fontsize=9,
    )  # fmt: skip
