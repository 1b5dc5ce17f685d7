"""Rows through a fitted codec and back, in the scaled space."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from retell.codec import Codec
from retell.constraints import UnitRMS
from retell.inference import Inference
from retell.objective import Objective
from retell.solvers.codes import check_map, optimise

__all__ = ["Reader"]

Array = npt.NDArray[Any]


class Reader:
    """What a fitted codec makes of rows.

    Parameters
    ----------
    codec : Codec
    objective : Objective
    constraint : Part
        Says what counts as one for each unit when a code is optimised.
    """

    def __init__(self, codec: Codec, objective: Objective, constraint: Any) -> None:
        self.codec, self.objective = codec, objective
        self.inference = Inference(codec)
        self.unit: Array | float = codec.rms.double().cpu().numpy() if isinstance(constraint, UnitRMS) else 1.0

    def encode(self, x: Array, how: str = "encoder") -> Array:
        """Scaled rows (N, D), NaN where unseen, to codes (N, K): the encoder's, or those of least objective ("map")."""
        if how == "encoder":
            return self.inference.encode(x)
        if how != "map":
            raise ValueError(f"inference={how!r} is not possible: 'encoder' or 'map' was expected")
        return self.optimise(x)[0]

    def optimise(self, x: Array) -> tuple[Array, Array]:
        """The codes (N, K) of least objective and by how much (N,) they beat the encoder's."""
        check_map(self.objective, self.codec.code_activation)
        return optimise(self.codec, self.objective, x, self.unit)

    def decode(self, h: Array) -> Array:
        """Codes (N, K) to reconstructions (N, D)."""
        x_hat = torch.from_numpy(self.inference.decode(h))
        mean: Array = self.objective.loss.mean(x_hat).double().numpy()
        return mean

    def reconstruct(self, x: Array, how: str = "encoder") -> Array:
        return self.decode(self.encode(x, how))

    def log_joint(self, x: Array, h: Array) -> tuple[Array, Array]:
        """log p(x | h) and log p(h) (N,) of scaled rows and their codes.

        Raises
        ------
        ValueError
            If the objective is not one likelihood plus one prior on the code.
        """
        likelihood, prior = self._densities()
        codec = self.codec
        with torch.no_grad():
            rows, codes = (torch.from_numpy(np.ascontiguousarray(z)).double().to(codec.centre.device) for z in (x, h))
            p = codec.as_pass(rows, codes, torch.as_tensor(self.unit).to(codes))
            p = p._replace(x_hat=torch.from_numpy(self.inference.decode(h)).double().to(rows.device))
            log_x = -likelihood(p)
            log_h = -prior(p) - torch.log(torch.as_tensor(p.unit).expand(codes.shape[1])).sum()  # of h, not of h / unit
        return log_x.cpu().numpy(), log_h.cpu().numpy()

    def _densities(self) -> tuple[Any, Any]:
        on = {"x": [], "code": [], "weights": []}  # type: dict[str, list[Any]]
        for coefficient, term in self.objective.summands:
            found = term.density(1, 1)
            if found is None or found[2] != 1.0 or coefficient != 1 or not hasattr(term, "p"):
                raise ValueError(
                    f"the objective {self.objective!r} is not a log density: {term!r} is not a Likelihood or a Prior"
                    " with coefficient 1; where it is one in other words, objective.explain(n_rows, n_features) says it"
                )
            on[found[1]].append(term)
        if len(on["x"]) != 1 or len(on["code"]) != 1:
            raise ValueError(
                f"log p(x, h) needs one Likelihood and one Prior on the code, got {self.objective!r}: add one, as in"
                " Likelihood(Normal()) + Prior(Laplace(0.1))"
            )
        return on["x"][0], on["code"][0]
