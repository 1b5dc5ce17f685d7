"""retell: autoencoders as one equation.

J(θ) = E [ L(x, g(f(x̃))) + Σ λᵢ Ωᵢ ],   x̃ = C(x),   f = σ ∘ encoder,   g = decoder,   θ ∈ Π
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retell.activations import Identity, ReLU, Sigmoid, Softplus, Tanh, TopK
    from retell.codec import Codec
    from retell.constraints import Free, UnitNorm, UnitRMS
    from retell.corruptions import Gaussian, Mask, Nothing
    from retell.estimator import Autoencoder, load
    from retell.grammar import parse
    from retell.losses import BCE, MSE, Huber
    from retell.networks import mirror, mlp
    from retell.objective import Objective, Term
    from retell.parts import Part, Pass
    from retell.penalties import KL, L1, L2, Contractive
    from retell.schedules import Cosine, Warmup
    from retell.store import CheckpointError, ModelFileError

__version__ = "0.1.0"

# Where each public word lives. Modules are imported when a word is first used, so that the command line
# can answer --help without waiting for torch.
_HOMES = {
    "activations": ("Identity", "ReLU", "Sigmoid", "Softplus", "Tanh", "TopK"),
    "codec": ("Codec",),
    "constraints": ("Free", "UnitNorm", "UnitRMS"),
    "corruptions": ("Gaussian", "Mask", "Nothing"),
    "estimator": ("Autoencoder", "load"),
    "grammar": ("parse",),
    "losses": ("BCE", "MSE", "Huber"),
    "networks": ("mirror", "mlp"),
    "objective": ("Objective", "Term"),
    "parts": ("Part", "Pass"),
    "penalties": ("KL", "L1", "L2", "Contractive"),
    "schedules": ("Cosine", "Warmup"),
    "store": ("CheckpointError", "ModelFileError"),
}
_HOME = {word: module for module, words in _HOMES.items() for word in words}

__all__ = [
    "BCE", "KL", "L1", "L2", "MSE", "Autoencoder", "CheckpointError", "Codec", "Contractive", "Cosine", "Free",
    "Gaussian", "Huber", "Identity", "Mask", "ModelFileError", "Nothing", "Objective", "Part", "Pass", "ReLU",
    "Sigmoid", "Softplus", "Tanh", "Term", "TopK", "UnitNorm", "UnitRMS", "Warmup", "load", "mirror", "mlp",
    "parse",
]  # fmt: skip


def __getattr__(word: str) -> object:
    if word not in _HOME:
        raise AttributeError(f"module 'retell' has no attribute {word!r}")
    value = getattr(import_module(f"retell.{_HOME[word]}"), word)
    globals()[word] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
