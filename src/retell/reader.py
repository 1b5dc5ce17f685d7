"""Rows through a fitted codec and back."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from retell.codec import Codec
from retell.constraints import UnitRMS
from retell.csr import Few, joined, nonzero, times
from retell.inference import Inference, Run
from retell.likeness import Norms
from retell.objective import Objective
from retell.rows.blocks import blocks, release, rows_a_block
from retell.scaling import Scaling
from retell.solvers.codes import check_map, optimise
from retell.spread import Work, calm, spread

__all__ = ["Reader"]

Array = npt.NDArray[Any]
Check = Callable[[Array, int], None]


class Reader:
    """What a fitted codec makes of rows.

    `transform`, `inverse`, `each` and `scaled` take rows in their own units, in constant memory; every other method
    takes rows in the scaled space.

    Parameters
    ----------
    codec : Codec
    objective : Objective
    constraint : Part
        Says what counts as one for each unit when a code is optimised.
    scaling : Scaling, optional
        For rows in their own units.
    norms : Norms, optional
        Of the rows of the fit.
    """

    def __init__(
        self, codec: Codec, objective: Objective, constraint: Any, scaling: Scaling | None = None,
        norms: Norms | None = None,
    ) -> None:  # fmt: skip
        self.codec, self.objective, self.scaling, self.norms = codec, objective, scaling, norms
        self.unit: Array | float = codec.rms.double().cpu().numpy() if isinstance(constraint, UnitRMS) else 1.0

    def __getstate__(self) -> dict[str, Any]:
        """Without the copies of the codec, which hold functions that can't be pickled and are soon made again."""
        return {name: value for name, value in self.__dict__.items() if name not in ("inference", "own")}

    @cached_property
    def inference(self) -> Inference:
        """For rows in the scaled space."""
        return Inference(self.codec)

    @cached_property
    def own(self) -> Inference:
        """For rows in their own units."""
        scaling = self.scaling
        if scaling is None:
            return self.inference
        return Inference(self.codec, scaling.shift, scaling.factor, 0.0 if self.norms is None else self.norms[2])

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
        """Scaled rows (N, D), NaN where unseen, to reconstructions (N, D)."""
        x_hat = np.empty(x.shape)
        for i, some in blocks(x, rows_a_block(max(self.codec.n_units, x.shape[1]))):
            x_hat[i : i + len(some)] = self.decode(self.encode(some, how))
        return x_hat

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

    def transform(self, rows: Array, how: str, out: Array, check: Check) -> Array:
        """Codes (N, K) of rows (N, D) in their own units, written to `out`.

        Parameters
        ----------
        rows : ndarray or Shards of shape (N, D)
            In C order; NaN where unseen.
        how : {"encoder", "map"}
        out : ndarray of shape (N, K)
        check : callable
            Is given every block in which something is not finite, and the number of its first row.
        """

        def take(i: int, j: int, h: Array) -> None:
            out[i:j] = h
            release(out[i:j])

        self.coded(take, rows, how, check, staggered=True)
        return out

    def transform_sparse(self, rows: Array, how: str, check: Check) -> csr_array:
        """As `transform`, what is not zero; of the rows' own dtype."""
        parts: dict[int, Few] = {}

        def take(i: int, _j: int, h: Array) -> None:
            parts[i] = nonzero(h.astype(rows.dtype, copy=False))

        self.coded(take, rows, how, check, staggered=True)
        return joined([parts[i] for i in sorted(parts)], self.codec.n_units)

    def coded(
        self, take: Callable[[int, int, Array], None], rows: Array, how: str, check: Check, *, staggered: bool = False
    ) -> None:
        """take(i, j, h) for the codes of the rows i to j of every block, good until the next ones; as `each`.

        `staggered` is for what is the same of every block, as with several threads these are others.
        """

        def start() -> Work:
            codes = self._coder(rows, how, check)
            return lambda i, j: take(i, j, codes(i, j))

        self._spread(start, rows, staggered=staggered)

    def inverse(self, h: Array, out: Array, check: Check) -> Array:
        """Reconstructions (N, D) of codes (N, K), in the rows' own units, written to `out`; as `transform`."""

        def start() -> Work:
            make, given = self._maker(len(h)), _slices(h)

            def work(i: int, j: int) -> None:
                x_hat, finite = make(given(i, j))
                if not finite:
                    check(h[i:j], i)
                out[i:j] = self._scaling.back(x_hat)
                release(out[i:j])

            return work

        self._spread(start, h)
        return out

    def inverse_sparse(self, h: csr_array, out: Array) -> Array:
        """As `inverse`, of codes that are mostly zero; a linear decoder reads what is not."""
        decoder, linear = self.own.decoder, not self.codec.decoder.deep
        first = decoder.products[0]
        bias = first.b[: decoder.n_outputs]

        def start() -> Work:
            make = self._maker(h.shape[0])

            def work(i: int, j: int) -> None:
                if linear:
                    some = times(h[i:j], first.W)[:, : decoder.n_outputs] + bias
                    x_hat: Array = self.objective.loss.mean(some).double().cpu().numpy()
                else:
                    x_hat = make(torch.from_numpy(h[i:j].toarray()))[0]
                out[i:j] = self._scaling.back(x_hat)
                release(out[i:j])

            return work

        with calm(1):
            spread(start, h.shape[0], rows_a_block(out.shape[1]) if linear else self.own.size(h.shape[0]))
        return out

    def each(self, take: Callable[..., None], rows: Array, how: str, check: Check, *, alone: bool = False) -> None:
        """take(i, j, x, h, x̂) for the rows i to j of every block: scaled rows, codes, reconstructions.

        Parameters
        ----------
        take : callable
        rows, how, check
            As in `transform`.
        alone : bool, default=False
            Block after block in order, by one thread.
        """

        def start() -> Work:
            codes, make = self._coder(rows, how, check), self._maker(len(rows))

            def work(i: int, j: int) -> None:
                h = codes(i, j)
                take(i, j, self._scaling.to(rows[i:j]), h, make(torch.from_numpy(h))[0])

            return work

        self._spread(start, rows, alone=alone)

    def scaled(self, take: Callable[[int, int, Array], None], rows: Array, check: Check) -> None:
        """take(i, j, x) for the rows i to j of every block, scaled; as `each`."""

        def work(i: int, j: int) -> None:
            check(rows[i:j], i)
            take(i, j, self._scaling.to(rows[i:j]))

        self._spread(lambda: work, rows)

    def _spread(self, start: Callable[[], Work], rows: Array, *, alone: bool = False, staggered: bool = False) -> None:
        """Work all rows in blocks, and give back what each has brought into memory."""

        def started() -> Work:
            work = start()

            def once(i: int, j: int) -> None:
                work(i, j)
                release(rows, i, j)

            return once

        with calm(1):
            spread(started, len(rows), self.own.size(len(rows)), most=1 if alone else None, staggered=staggered)

    def _coder(self, rows: Array, how: str, check: Check) -> Callable[[int, int], Array]:
        """For one thread: the codes of the rows i to j, good until the next ones."""

        def optimised(i: int, j: int) -> Array:
            check(rows[i:j], i)
            return self.encode(self._scaling.to(rows[i:j]), how)

        if how != "encoder":
            return optimised
        run, squash = Run(self.own.encoder, len(rows)), self.own.squash
        given = _slices(rows)

        def encoded(i: int, j: int) -> Array:
            a, finite = run(given(i, j))
            if not finite:
                check(rows[i:j], i)
            h: Array = squash(a)[: j - i].cpu().numpy()
            return h

        return encoded

    def _maker(self, n_rows: int) -> Callable[[Tensor], tuple[Array, bool]]:
        """For one thread: scaled reconstructions (n, D) of codes, float64, and whether the codes were finite."""
        run = Run(self.own.decoder, n_rows)

        def make(h: Tensor) -> tuple[Array, bool]:
            outputs, finite = run(h)
            x_hat: Array = self.objective.loss.mean(outputs)[: len(h)].double().cpu().numpy()
            return x_hat, finite

        return make

    @property
    def _scaling(self) -> Scaling:
        assert self.scaling is not None
        return self.scaling

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


def _slices(rows: Array) -> Callable[[int, int], Tensor]:
    """Rows i to j as a tensor: of an array a view, of shards a copy."""
    if isinstance(rows, np.ndarray):
        whole = from_dlpack(rows)
        return lambda i, j: whole[i:j]
    return lambda i, j: torch.from_numpy(rows[i:j])
