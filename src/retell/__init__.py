"""retell: autoencoders as one equation.

J(θ) = E [ L(x, g(f(x̃))) + Σ λᵢ Ωᵢ ],   x̃ = C(x),   f = σ ∘ encoder,   g = decoder,   θ ∈ Π
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retell.activations import (
        BatchTopK,
        Gated,
        Identity,
        JumpReLU,
        ReLU,
        Sample,
        Sigmoid,
        Softplus,
        Tanh,
        TopK,
    )
    from retell.codec import Codec
    from retell.constraints import Free, NonNegative, UnitNorm, UnitRMS
    from retell.corruptions import Gaussian, Mask, Nothing, SaltAndPepper, Swap, Uniform
    from retell.densities import Bernoulli, Exponential, Laplace, Normal
    from retell.diagnosis import diagnose
    from retell.estimator import Autoencoder, load
    from retell.frontiers import Frontier, frontier
    from retell.grammar import parse
    from retell.inspection import inspect
    from retell.losses import BCE, MSE, Hidden, Huber, Likelihood, Nested, Poisson
    from retell.networks import mirror, mlp
    from retell.objective import Objective, Term
    from retell.parts import Corrupted, Part, Pass
    from retell.penalties import (
        KL,
        L0,
        L1,
        L2,
        AuxK,
        Contractive,
        GateL1,
        GateMSE,
        L1Weights,
        Prior,
        StudentT,
        ToNormal,
    )
    from retell.schedules import Cosine, Warmup
    from retell.store import CheckpointError, ModelFileError

__version__ = "0.1.0"

# Where each public word lives. Modules are imported when a word is first used, so that the command line
# can answer --help without waiting for torch.
_HOMES: dict[str, tuple[str, ...]] = {
    "activations": (
        "BatchTopK",
        "Gated",
        "Identity",
        "JumpReLU",
        "ReLU",
        "Sample",
        "Sigmoid",
        "Softplus",
        "Tanh",
        "TopK",
    ),
    "codec": ("Codec",),
    "constraints": ("Free", "NonNegative", "UnitNorm", "UnitRMS"),
    "corruptions": ("Gaussian", "Mask", "Nothing", "SaltAndPepper", "Swap", "Uniform"),
    "densities": ("Bernoulli", "Exponential", "Laplace", "Normal"),
    "diagnosis": ("diagnose",),
    "estimator": ("Autoencoder", "load"),
    "frontiers": ("Frontier", "frontier"),
    "grammar": ("parse",),
    "inspection": ("inspect",),
    "losses": ("BCE", "MSE", "Hidden", "Huber", "Likelihood", "Nested", "Poisson"),
    "networks": ("mirror", "mlp"),
    "objective": ("Objective", "Term"),
    "parts": ("Corrupted", "Part", "Pass"),
    "penalties": (
        "KL",
        "L0",
        "L1",
        "L2",
        "AuxK",
        "Contractive",
        "GateL1",
        "GateMSE",
        "L1Weights",
        "Prior",
        "StudentT",
        "ToNormal",
    ),
    "schedules": ("Cosine", "Warmup"),
    "store": ("CheckpointError", "ModelFileError"),
}
_HOME = {word: module for module, words in _HOMES.items() for word in words}

__all__ = [
    "BCE", "KL", "L0", "L1", "L2", "MSE", "Autoencoder", "AuxK", "BatchTopK", "Bernoulli", "CheckpointError", "Codec",
    "Contractive", "Corrupted", "Cosine", "Exponential", "Free", "Frontier", "GateL1", "GateMSE", "Gated", "Gaussian",
    "Hidden", "Huber", "Identity", "JumpReLU", "L1Weights", "Laplace", "Likelihood", "Mask", "ModelFileError",
    "Nested", "NonNegative", "Normal", "Nothing", "Objective", "Part", "Pass", "Poisson", "Prior", "ReLU",
    "SaltAndPepper", "Sample", "Sigmoid", "Softplus", "StudentT", "Swap", "Tanh", "Term", "ToNormal", "TopK",
    "Uniform", "UnitNorm", "UnitRMS", "Warmup", "diagnose", "frontier", "inspect", "load", "mirror", "mlp", "parse",
]  # fmt: skip


def __getattr__(word: str) -> object:
    if word == "convert":  # a package of its own words
        return import_module("retell.convert")
    if word not in _HOME:
        raise AttributeError(f"module 'retell' has no attribute {word!r}")
    value = getattr(import_module(f"retell.{_HOME[word]}"), word)
    globals()[word] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
