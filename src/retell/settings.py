"""The estimator's parameters as a record: what a model file may say and what the command line offers.

No torch here: `retell fit --help` reads it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

__all__ = ["Settings", "as_settings"]

MOST = sys.float_info.max

Auto = Literal["auto"]
Positive = Annotated[int, msgspec.Meta(ge=1, description="an int from 1 on")]
Share = Annotated[float, msgspec.Meta(gt=0, lt=1, description="a number in (0, 1)")]
Multiple = Annotated[float, msgspec.Meta(gt=1, le=MOST, description="a finite number above 1")]
AboveZero = Annotated[float, msgspec.Meta(gt=0, le=MOST, description="a finite number above 0")]
FromZero = Annotated[float, msgspec.Meta(ge=0, le=MOST, description="a finite number from 0 on")]
Count = Annotated[int, msgspec.Meta(ge=0, description="an int from 0 on")]
Device = Annotated[
    str,
    msgspec.Meta(
        pattern="^(auto|cpu|mps|(cuda|xpu)(:[0-9]+)?)$", description="'auto', 'cpu', 'mps', 'cuda', 'cuda:1', 'xpu'"
    ),
]
Widths = Annotated[
    tuple[Positive, ...], msgspec.Meta(description="a tuple of ints from 1 on, such as (64, 32), (16,) or ()")
]


@dataclass(frozen=True)
class Settings:
    """Every parameter of `Autoencoder`, its type and its default.

    Parts are grammar text here.
    """

    n_components: Positive | Share | Auto | None = "auto"
    """Code units K: a number; a share of variance in (0, 1); auto = min(32, D // 2); none = D."""
    hidden_layer_sizes: Widths | Auto = "auto"
    """Widths between input and code, as in (512, 256); () is the linear model."""
    decoder_hidden_layer_sizes: Widths | Literal["mirror"] = "mirror"
    """Widths between code and output; mirror = the encoder's, backwards."""
    activation: Literal["relu", "gelu", "silu", "tanh", "sigmoid", "identity"] = "gelu"
    """Activation of the hidden layers."""
    code_activation: str = "Identity()"
    """Activation of the code, as in 'TopK(8)'."""
    target_l0: AboveZero | None = None
    """Active units of a row, on average: k, or the coefficient of L0 or L1, is found for it."""
    target_fvu: Share | None = None
    """Fraction of variance unexplained, in place of target_l0."""
    linear_path: bool = True
    """Keep a linear map beside the hidden layers."""
    tied: bool = False
    """Let the decoder share the encoder's matrices, transposed."""
    objective: str = "MSE()"
    """What is minimised, as in 'MSE() + 0.001 * L1()'."""
    corruption: str = "Nothing()"
    """What is done to rows while training, as in 'Mask(0.3)'."""
    constraint: str = "auto"
    """Set the weights obey, as in 'UnitNorm()'."""
    scale: Auto | Literal["standard"] | None = "auto"
    """standard = per column, none = centre only, auto = one factor if spreads are alike."""
    max_norm: Multiple | None = None
    """Fit to no row further from the columns' medians than so many times the median distance."""
    solver: Literal["auto", "exact", "sparse", "dense", "descend"] = "auto"
    """exact = closed form, sparse = by active pairs, dense = gradients written out, descend = autograd."""
    start: Literal["auto", "random"] = "auto"
    """auto = from the data (PCA), random = small random weights."""
    inference: Literal["encoder", "map"] = "encoder"
    """Codes by the encoder, or by minimising the objective over them."""
    batch_size: Positive | Auto = "auto"
    """Rows a step."""
    learning_rate_init: AboveZero | Auto = "auto"
    """Largest learning rate of the schedule."""
    weight_decay: FromZero | Auto = "auto"
    """Pull of nonlinear paths beside linear ones towards silence (AdamW); auto = 0.4."""
    max_iter: Positive | Auto = "auto"
    """Most epochs."""
    max_time: AboveZero | None = None
    """Most seconds, looked at after each step; the only setting that makes a fit depend on a clock."""
    early_stopping: bool = True
    """Hold rows out, stop when they stop improving, keep the best."""
    validation_fraction: Share = 0.1
    """Share of the rows held out."""
    n_iter_no_change: Positive = 10
    """Epochs without improvement before stopping."""
    tol: FromZero = 1e-4
    """Relative improvement that counts."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    precision: Auto | Literal["bfloat16", "float32", "float64"] = "auto"
    """Arithmetic; bfloat16 = products only; auto = float64 for closed forms, else by size and processor."""
    random_state: int | None = None
    """Seed; the same seed gives the same bits, on one machine with as many threads."""
    verbose: Count = 0
    """1 reports the solver and every few epochs."""


def as_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from plain values, strictly.

    Raises
    ------
    ValueError
        For an unknown name, a wrong type or a value out of range; the message names the parameter and what it may be.
    """
    unknown = values.keys() - Settings.__dataclass_fields__.keys()
    if unknown:
        raise ValueError(f"there is no parameter {sorted(unknown)[0]!r}")
    checked = {}
    for name, value in values.items():
        try:
            checked[name] = msgspec.convert(_plain(value), _TYPES[name])
        except msgspec.ValidationError:
            *others, last = _words(_TYPES[name])
            allowed = f"{', '.join(others)} or {last}" if others else last
            raise ValueError(f"{name}={value!r} is not possible: {allowed} was expected") from None
    return Settings(**checked)


def _words(kind: Any) -> list[str]:
    """What values of a parameter's type are, one kind after the other."""
    if get_origin(kind) in (Union, UnionType):
        return [word for one in get_args(kind) for word in _words(one)]
    if get_origin(kind) is Literal:
        return [repr(value) for value in get_args(kind)]
    known = {bool: "True or False", int: "an int", str: "text", NoneType: "None"}
    return [known[kind] if kind in known else kind.__metadata__[0].description]


def _plain(value: Any) -> Any:
    """The value with NumPy's numbers as Python's, in tuples and lists too; numpy itself stays unimported."""
    if isinstance(value, tuple | list):
        return type(value)(_plain(item) for item in value)
    return value.item() if getattr(value, "shape", None) == () else value


_TYPES = get_type_hints(Settings, include_extras=True)
