"""What "auto" means: every rule is a function of shapes and types, never of a clock."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from retell.activations import BatchTopK, Identity, JumpReLU, ReLU
from retell.codec import Codec
from retell.constraints import Free, NonNegative, UnitNorm, UnitRMS
from retell.corruptions import Nothing
from retell.dials import many
from retell.notice import warn
from retell.objective import Objective
from retell.parts import part_of
from retell.penalties import L1, Contractive, Prior, StudentT

__all__ = [
    "SURE",
    "WEIGHT_DECAY",
    "Way",
    "constraint",
    "device",
    "dtype",
    "few_active",
    "held_out_rows",
    "hidden_layer_sizes",
    "n_components",
    "penalties",
    "quick",
    "rounded",
    "shared_out",
    "warn_identity",
    "way",
]

Array = npt.NDArray[Any]

SURE = 3.0  # standard errors by which a fit must be better than PCA, where it starts there
WEIGHT_DECAY = 0.4  # of nonlinear paths beside linear ones
LARGE = 2**33  # rows x columns x units from which a dictionary is shared out among the rows
LARGE_STEP = 2**26  # the same of a batch, from which active pairs cost less than all cells
HASTY = 200  # steps of a fit in which biases must hurry


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
    D = len(codec.centre)
    fewer = "Lower n_components, add" if D > 1 else "Add"
    if codec.n_units >= D and not kept_back:
        warn(
            f"the code has {_counted(codec.n_units, 'unit')} for {_counted(D, 'column')} and nothing holds it back: the"
            f" autoencoder can learn the identity and nothing else. {fewer} a penalty (objective="
            "'MSE() + 0.001 * L1()'), a corruption ('Mask(0.3)') or a sparse code ('TopK(8)')",
        )


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


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
    """How many of n rows are held out: the fraction, but at least 40, or a quarter of fewer than 160.

    Never a single one, which does not vary about its own mean, so that its R² says nothing: then there are none.
    """
    some = min(n - 1, max(round(fraction * n), min(40, n // 4)))
    return some if some > 1 else 0


def few_active(codec: Codec, batch: int) -> bool:
    """Whether a step by active pairs repays their gathering: large products, and at most one unit in 16 active."""
    k = getattr(codec.code_activation, "k", codec.n_units / 16)
    return batch * codec.n_units * len(codec.centre) >= LARGE_STEP and 16 * k <= codec.n_units


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


class Way(NamedTuple):
    """How a codec is trained: what batches, how many, how fast."""

    batch: int
    rate: float
    """The largest learning rate."""
    steps: int
    """Wanted at least, in epochs from `least` to `most`."""
    least: int
    most: int
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam."""
    late: float = 0.9
    """What the first of them falls to, with the rate."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises."""
    bias: float = 1.0
    """How many times as fast as other numbers the encoder's biases learn, in a fit of at most `HASTY` steps."""
    revive: float = 0.0
    """By how much the bias of an idle unit rises in a step, in its own largest rates."""
    first: float = 0.0
    """Units a row at the first step, where fewer are wanted in the end."""

    def epochs(self, n: int, batch: int) -> int:
        """How many of n rows."""
        return int(min(self.most, max(self.least, round(self.steps / max(1, round(n / batch))))))

    def bias_rate(self, steps: int) -> float:
        """How many times as fast they learn in so many steps: what many small ones reach, few must be long for."""
        return max(1.0, self.bias * math.sqrt(min(1.0, HASTY / max(1, steps))))


def way(
    codec: Codec, objective: Objective, corruption: Any, constraint: Any, start: str, n: int, batch: int | None,
    *, known: bool,
) -> Way:  # fmt: skip
    """The way for n rows, in batches of a given size or of its own.

    Dictionaries of many units that many rows share out take batches up to 4,096, Adam with a short memory that gets
    shorter as the rate falls, and a rate that falls with the square root of the units. The encoder's biases learn
    0.4 √D times as fast, for what they are added to moves with every column of a row, less in fits of more than 200
    steps, in which they keep up; those of idle units are raised. Where it is `known` how many units a row they have in
    the end, BatchTopK, JumpReLU and ReLU are thinned out on the way, and the former two are faster by half.
    Where the way is short, nonlinear paths beside linear ones take batches near 4 √n, or n / 48 if that is more, up to
    4,096, and some 120 steps, at a rate that falls with the columns beyond 384: that many cells, all moved by one rate,
    move what they add up to. Others take batches of n / 16, to 64: 4,000 steps from far off, else 1,500; a rate of
    7e-3 for nonlinear paths beside linear ones, which take 0.3 of it; 1e-2 for a linear net that starts far off, 4e-2
    for a random one without code activation, 2e-3 for other nets.
    """
    if shared_out(codec, objective, start, n):
        batch = batch or _power_of_two(n / 16, 4096)
        level = known and isinstance(part_of(codec.code_activation), BatchTopK | JumpReLU)
        rate = (3e-2 if level else 2e-2) * math.sqrt(min(1.0, batch / 4096) * min(1.0, 3072 / codec.n_units))
        bias = max(1.0, 0.4 * math.sqrt(len(codec.centre)))
        first = many(codec) if level else 0.0
        if known and isinstance(codec.code_activation, ReLU):
            first = min(codec.n_units, len(codec.centre)) / 2
        return Way(batch, rate, 500, 10, 400, (0.85, 0.93), 0.7, 0.3, bias, 0.35, first)
    is_far = far(codec, start, constraint)
    if not is_far and quick(codec, objective, corruption):
        rate = 3e-2 * min(1.0, 384 / len(codec.centre))
        batch = batch or _power_of_two(min(n / 4, max(4 * math.sqrt(n), n / 48)), 4096)
        return Way(batch, rate * math.sqrt(min(1.0, batch / 256) * max(1.0, batch / 2048)), 120, 10, 60)
    batch = batch or _power_of_two(n / 16, 64)
    rate = 2e-3
    if codec.encoder.linear is not None or codec.decoder.linear is not None:
        rate = 7e-3
    elif is_far and not (codec.encoder.deep or codec.decoder.deep):
        rate = 4e-2 if start == "random" and isinstance(codec.code_activation, Identity) else 1e-2
    return Way(batch, rate, 4000, 30, 400) if is_far else Way(batch, rate, 1500, 10, 60)


def shared_out(codec: Codec, objective: Objective, start: str, n: int) -> bool:
    """Whether a sparse linear dictionary is so large, and has so many rows, that its units have few rows each."""
    L1_code = isinstance(codec.code_activation, ReLU) and any(isinstance(term, L1) for term in penalties(objective))
    shallow = not (codec.encoder.deep or codec.decoder.deep)
    sparse = codec.code_activation.sparse or L1_code
    return sparse and shallow and start != "random" and n * codec.n_units * len(codec.centre) >= LARGE


def _power_of_two(near: float, most: int) -> int:
    """The one nearest, from 16 to `most`."""
    return int(min(most, max(16, 2 ** round(math.log2(max(1.0, near))))))
