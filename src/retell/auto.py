"""What "auto" means: every rule is a function of shapes and types, never of a clock."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from retell.activations import Identity
from retell.codec import Codec
from retell.constraints import Free, NonNegative, UnitNorm, UnitRMS
from retell.corruptions import Nothing
from retell.objective import Objective
from retell.penalties import L1, Contractive, Prior, StudentT

__all__ = [
    "SURE",
    "WEIGHT_DECAY",
    "batch_size",
    "constraint",
    "device",
    "dtype",
    "few_active",
    "held_out_rows",
    "hidden_layer_sizes",
    "learning_rate",
    "max_iter",
    "n_components",
    "penalties",
    "quick",
    "rounded",
    "warn_identity",
]

Array = npt.NDArray[Any]

SURE = 3.0  # standard errors by which a fit must be better than PCA, where it starts there
WEIGHT_DECAY = 0.4  # of nonlinear paths beside linear ones


def n_components(given: Any, variances: Array) -> int:
    """K: as given, all columns for None, "auto" = max(1, min(32, D // 2)), or a share of variance.

    Parameters
    ----------
    given : int, float, "auto" or None
    variances : ndarray of shape (D,)
        Eigenvalues of the covariance of the scaled rows, descending.
    """
    width = len(variances)
    if given is None:
        return width
    if isinstance(given, str):
        return max(1, min(32, width // 2))
    if isinstance(given, float):
        kept = np.cumsum(variances) / max(variances.sum(), np.finfo(float).tiny)
        return min(width, int(np.searchsorted(kept, given - 1e-12)) + 1)
    return int(given)


def constraint(objective: Objective, code_activation: Any, *, deep: bool, tied: bool) -> Any:
    """What keeps a penalty from being escaped by shrinking the code and growing the decoder.

    With L1, StudentT, Contractive, a prior on the code, or a sparse code: UnitNorm on a linear decoder, UnitRMS
    with a deep one, nothing where weights are tied (the decoder can't grow alone). The reconstruction's own
    contraction can't be escaped.
    """
    escapable = code_activation.sparse or any(
        isinstance(term, L1 | StudentT)
        or (isinstance(term, Contractive) and term.of == "code")
        or (isinstance(term, Prior) and term.on == "code")
        for term in objective.terms
    )
    if not escapable or tied:
        return Free()
    return UnitRMS() if deep else UnitNorm()


def penalties(objective: Objective) -> list[Any]:
    """The terms that are no loss and count for something."""
    return [term for coefficient, term in objective.summands if term.letter == "Ω" and coefficient != 0]


def warn_identity(codec: Codec, objective: Objective, corruption: Any) -> None:
    """Warn where nothing keeps the codec from learning the identity.

    A loss holds nothing back, whichever it is, nor do draws that the encoder may make as narrow as it likes.
    """
    kept_back = codec.code_activation.sparse or not isinstance(corruption, Nothing) or penalties(objective)
    if codec.n_units >= len(codec.centre) and not kept_back:
        warnings.warn(
            f"the code has {codec.n_units} units for {len(codec.centre)} columns and nothing holds it back: the"
            " autoencoder can learn the identity and nothing else. Lower n_components, add a penalty (objective="
            "'MSE() + 0.001 * L1()'), a corruption ('Mask(0.3)') or a sparse code ('TopK(8)')",
            UserWarning,
            stacklevel=4,
        )


def dtype(precision: str, solver: str) -> torch.dtype:
    """What weights are kept in: float64 for closed forms, float32 otherwise; bfloat16 is for products only."""
    if precision == "auto":
        return torch.float64 if solver == "exact" else torch.float32
    return torch.float64 if precision == "float64" else torch.float32


def device(name: str) -> torch.device:
    """cuda if there is one, else the cpu."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # how torch says that a device is unknown or absent
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={name!r} can't be used here: {reason}; 'auto' and 'cpu' always can") from None
    return device


def rounded(codec: Codec, batch: int) -> bool:
    """Whether bfloat16 products repay their casts: nets of 100,000 weights or more, in batches of 32 rows or more,
    on a processor that multiplies them itself."""
    weights = sum(layer.weight.numel() for layer in codec.affines())
    native = codec.centre.device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return native and codec.centre.dtype == torch.float32 and weights >= 100_000 and batch >= 32


def hidden_layer_sizes(n: int, D: int) -> tuple[int, int]:
    """(H, H // 2) with H = 4 D, at most 256 and a sixteenth of the n rows, at least 16."""
    widest = max(16, min(256, 4 * D, n // 16))
    return widest, max(8, widest // 2)


def held_out_rows(n: int, fraction: float) -> int:
    """How many of n rows are held out: the fraction, but at least 40, or a quarter of fewer than 160."""
    return min(n - 1, max(1, round(fraction * n), min(40, n // 4)))


def batch_size(n: int, *, quick: bool) -> int:
    """Where the way is short the power of two nearest to 4 √n and to n / 4, from 16 to 1,024; else to n / 16, to 64."""
    most, size = (1024, min(n / 4, 4 * math.sqrt(n))) if quick else (64, n / 16)
    return int(min(most, max(16, 2 ** round(math.log2(max(1.0, size))))))


def few_active(codec: Codec) -> bool:
    """Whether a step by active pairs repays their gathering: 256 units or more, at most one in 16 active."""
    k = getattr(codec.code_activation, "k", None)
    return codec.n_units >= 256 and k is not None and 16 * int(k) <= codec.n_units


def quick(codec: Codec, objective: Objective, corruption: Any) -> bool:
    """Whether the way is short: reconstruction alone, by nonlinear paths beside linear ones that start at PCA's."""
    beside = codec.encoder.linear is not None or codec.decoder.linear is not None
    return beside and isinstance(corruption, Nothing) and not penalties(objective)


def far(codec: Codec, start: str, constraint: Any) -> bool:
    """Whether the first weights are far from good ones: random, or with a random frame for a dictionary.

    PCA's axes are no help to a code that is sparse or wider than the rows, nor where nothing may be negative.
    """
    wide = codec.n_units > len(codec.centre)
    return start == "random" or wide or codec.code_activation.sparse or isinstance(constraint, NonNegative)


def max_iter(n: int, batch: int, *, far: bool, quick: bool) -> int:
    """Epochs enough for 1,500 steps, 120 where the way is short, from 10 to 60; for 4,000, 30 to 400, from far off."""
    steps, least, most = (4000, 30, 400) if far else (120 if quick else 1500, 10, 60)
    return int(min(most, max(least, round(steps / max(1, round(n / batch))))))


def learning_rate(codec: Codec, start: str, batch: int, *, far: bool, quick: bool) -> float:
    """For nonlinear paths beside linear ones, which take 0.3 of it, 7e-3; 3e-2 √min(1, batch / 256) on a short way.

    For other nets 2e-3. A linear net that starts far off takes 1e-2, a random one without code activation 4e-2.
    """
    if quick:
        return 3e-2 * math.sqrt(min(1.0, batch / 256))
    if codec.encoder.linear is not None or codec.decoder.linear is not None:
        return 7e-3
    if not far or codec.encoder.deep or codec.decoder.deep:
        return 2e-3
    return 4e-2 if start == "random" and isinstance(codec.code_activation, Identity) else 1e-2
