"""An autoencoder of one affine map each way, in its rows' own units: what the formats of sparse dictionaries can say.

    a = (row - c) W + b,   h = σ(a),   row^ = h V + c

A format may leave out the subtraction of c. To and from a fitted `Autoencoder`, whose codec works on
x = (row - shift) / factor.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from retell.activations import BatchTopK, Gated, JumpReLU, ReLU, TopK
from retell.codec import Codec
from retell.estimator import Autoencoder
from retell.factors import Factors
from retell.grammar import read_parts
from retell.losses import MSE, Nested
from retell.model_file import Fitted, Model
from retell.networks import Affine
from retell.parts import Part, part_of
from retell.plan import build_codec
from retell.scaling import Scaling
from retell.settings import Settings

__all__ = ["Shallow", "dtype_of"]

UNIT = 1e-5  # how far from 1 a norm of 1 may be written
STEADY = 100.0  # batches that an imported threshold counts as, so that going on moves it slowly


@dataclass(frozen=True)
class Shallow:
    """Weights and code activation; D columns, K units.

    Parameters
    ----------
    W : Tensor of shape (D, K)
    b : Tensor of shape (K,)
    V : Tensor of shape (K, D)
    c : Tensor of shape (D,)
    code : Part
        ReLU, TopK, BatchTopK, JumpReLU or Gated.
    own : dict of str to Tensor
        What the code activation has learned or counted, by the names that its `bind` gives: `threshold` (K,) of
        JumpReLU, one number of BatchTopK; `stretch` and `shift` (K,) of Gated.
    centred : bool, default=True
        Whether c is subtracted from the rows before W.
    prefixes : tuple of int
        Prefixes of the code that were trained to be codes themselves.
    columns : list of str or None
        The columns' names.
    """

    W: Tensor
    b: Tensor
    V: Tensor
    c: Tensor
    code: Part
    own: dict[str, Tensor] = field(default_factory=dict)
    centred: bool = True
    prefixes: tuple[int, ...] = ()
    columns: list[str] | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, model: Autoencoder, dtype: torch.dtype) -> Shallow:
        """A fitted model with its scaling folded into the weights, which are rounded to `dtype`.

        Raises
        ------
        ValueError
            If the model is more than one affine map each way, its code activation is another, or `dtype` can't hold
            the weights.
        """
        model._check_fitted()
        _refuse(model)
        codec, scaling = model.codec_, model.scaling_
        (W, b), (V, bias) = (_matrix(net.last) for net in (codec.encoder, codec.decoder))
        shift, factor = torch.from_numpy(scaling.shift), torch.from_numpy(scaling.factor)
        c = (bias * factor + shift).to(dtype)
        lost = (c.double() - shift) / factor  # c as it was rounded: the codes do not feel that
        squash = codec.code_activation
        folded = ((W / factor).T, b + W @ lost, (V * factor[:, None]).T)
        W, b, V = (some.to(dtype).contiguous() for some in folded)
        if not all(bool(some.isfinite().all()) for some in (W, b, V, c)):
            raise ValueError(
                "columns of such units make weights that this dtype can't hold: dtype='float64' keeps more digits"
            )
        return cls(
            W=W,
            b=b,
            V=V,
            c=c,
            code=part_of(squash),
            own={name: value.detach().cpu().to(dtype) for name, value in squash.state_dict().items()}
            if isinstance(squash, torch.nn.Module)
            else {},
            prefixes=_prefixes(model),
            columns=model._model.fitted.columns,
        )

    @torch.no_grad()
    def autoencoder(self, origin: str) -> Autoencoder:
        """The fitted estimator; `origin` says what it comes from.

        It has seen no rows: it has no density, no scores and no factors; `mean_`, which stands for unseen cells, is c.
        """
        (D, K), dtype = self.W.shape, torch.promote_types(self.W.dtype, torch.float32)
        unit = bool((self.V.double().norm(dim=1) - 1).abs().max() <= UNIT)
        settings = Settings(
            n_components=K,
            hidden_layer_sizes=(),
            code_activation=repr(self.code),
            objective=repr(Nested(MSE(), self.prefixes) if self.prefixes else MSE()),
            constraint="UnitNorm()" if unit else "Free()",
            scale=None,
        )
        parts = read_parts(asdict(settings))
        codec = build_codec(settings, parts, D, K, ((), ()), dtype)
        c = self.c.double().numpy()
        nought, one = np.zeros(D), np.ones(D)
        scaling = Scaling(c, one, nought) if self.centred else Scaling(nought, one, c)
        self._fill(codec, scaling)
        model = Model(
            settings=settings,
            fitted=_fitted(settings, origin, str(dtype).removeprefix("torch."), D, self.columns),
            parts=parts,
            codec=codec,
            scaling=scaling,
            density=None,
            factors=Factors(np.zeros((D, 0)), one),
        )
        estimator = Autoencoder(**asdict(settings))
        estimator._become(model)
        return estimator

    def _fill(self, codec: Codec, scaling: Scaling) -> None:
        """The codec's weights: rows that are shifted by c already come back without it."""
        own = {**self.own, "batches": torch.tensor(STEADY)} if isinstance(self.code, BatchTopK) else self.own
        weights = {
            "encoder.layers.0.own": self.W.T,
            "encoder.layers.0.bias": self.b,
            "decoder.layers.0.own": self.V.T,
            "decoder.layers.0.bias": torch.zeros_like(self.c) if self.centred else self.c,
        } | {f"code_activation.{name}": value for name, value in own.items()}
        like = codec.centre
        codec.load_state_dict({**codec.state_dict(), **{k: v.to(like).contiguous() for k, v in weights.items()}},
                              assign=True)  # fmt: skip
        codec.centre = torch.from_numpy(scaling.centre).to(like)


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a folder to write.

    Raises
    ------
    ValueError
        For anything but "float32" and "float64".

    Examples
    --------
    >>> from retell.convert.shallow import dtype_of
    >>> dtype_of("float32")
    torch.float32
    """
    if name not in ("float32", "float64"):
        raise ValueError(
            f"dtype={name!r} is not possible: 'float32' or 'float64' was expected; fewer digits would change which"
            " units are active"
        )
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _refuse(model: Autoencoder) -> None:
    """Say why a model can't be written as one affine map each way, if so."""
    codec, part = model.codec_, part_of(model.codec_.code_activation)
    hidden = model._model.fitted.encoder or model._model.fitted.decoder
    if codec.encoder.deep or codec.decoder.deep:
        raise ValueError(
            f"this model has hidden layers {hidden}, and the folder would hold one affine map each way: fit with"
            " hidden_layer_sizes=()"
        )
    if not isinstance(part, ReLU | TopK | BatchTopK | JumpReLU | Gated):
        raise ValueError(
            f"code_activation={part!r} has no place in the folder: ReLU(), TopK(k), BatchTopK(k), JumpReLU() or Gated()"
            " was expected"
        )
    if isinstance(part, TopK) and part.least:
        raise ValueError(
            f"code_activation={part!r} has no place in the folder, which knows the k largest of a row and not what they"
            f" must be above: fit with code_activation='TopK({int(part.k)})' and without target_fvu, or with BatchTopK"
        )
    probe = torch.tensor([-2.0, 0.0, 0.5, 3.0])
    if not torch.equal(model.objective_.loss.mean(probe), probe):
        raise ValueError(
            f"{model.objective_.loss!r} reconstructs through a link that the folder has no place for: fit with MSE()"
            " or Huber()"
        )
    if model.inference != "encoder":
        raise ValueError(
            f"inference={model.inference!r} finds codes by optimisation, and the folder would hold the encoder: set"
            " inference='encoder' first"
        )


def _matrix(layer: Affine) -> tuple[Tensor, Tensor]:
    assert layer.bias is not None
    return layer.weight.detach().cpu().double(), layer.bias.detach().cpu().double()


def _prefixes(model: Autoencoder) -> tuple[int, ...]:
    loss = model.objective_.loss
    return tuple(loss.prefixes) if isinstance(loss, Nested) else ()


def _fitted(settings: Settings, origin: str, dtype: str, n_features: int, columns: list[str] | None) -> Fitted:
    """What a fit would have settled; scores that only rows could tell are NaN."""
    unknown = float("nan")
    assert isinstance(settings.n_components, int)
    return Fitted(
        n_features=n_features,
        columns=columns,
        n_components=settings.n_components,
        encoder=(),
        decoder=(),
        constraint=settings.constraint,
        solver="none",
        dtype=dtype,
        seed=0,
        n_iter=0,
        origin=origin,
        filler="network",
        n_factors=0,
        best_loss=unknown,
        score=unknown,
        train_score=unknown,
        pca_score=unknown,
        loss_curve=[],
        validation_scores=[],
        history={},
    )
