"""Sparsity by its result: units a row (L0) or unexplained variance (FVU) in place of λ, θ or k.

A dial wants so many units a row: the target itself, or what the FVU of batches says,

    log wanted <- log wanted + g (log(FVU / target) + gap),   gap = log(FVU of rows held out / FVU of batches),

the latter after each epoch, and gets them by k where the code has one, else by λ m, the coefficients of L0 and L1 times

    log m <- log m + p (e - e') + g e,   e = log(L0 / wanted) before a step, e' before the last one,

where L1 begins with the λ that cuts off the codes of a unit alone where ReLU cuts them at the start, and by JumpReLU's
thresholds, which before each step all take the factor that leaves as many units a row as are wanted. L0 is that of a
few of the rows that judge: rows that are fitted to have fewer units active, and a code that has to be tightened at the
end has units that fall silent. Before the first step and after the last the code is set on rows alone (`settle`), so
that they have the target itself.

A code that cuts all rows at a level is left with far larger errors if it is thin from the first step on, and one of L1
with units of no use. A large one is thinned out: at a share t of the steps it has

    first^(1 - s) wanted^s,   s = min(1, t / 0.9)

units a row, target or not. L1 takes long to settle: it is thin 250 steps before the end, or from the first step on.
JumpReLU's thresholds, of a code of any size that has a target, wait so long with learning: under a weak L0 a few fall
until their units are always active, and the factor that all take silences the others.

L1 makes codes too short (Wright & Sharkey 2024, "Addressing Feature Suppression in SAEs"), the more so the sparser they
are. Where it is for the units a row that it was given, and not for its own sake, `settle` makes them longer: by one
factor, which least squares says.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retell.activations import BatchTopK, JumpReLU, ReLU, TopK
from retell.codec import Codec
from retell.losses import MSE
from retell.objective import Objective, at
from retell.parts import Bound, part_of
from retell.penalties import L0, L1

__all__ = ["NO_AIM", "Aim", "Dial", "aimed", "at_first", "check", "many", "over", "rounded", "settle", "told"]

WAIT = 0.1  # share of the steps before the wanted number moves; it rises slowly at first, as what has not been learned
# yet is no lack of units, and many at a high rate would do harm
LATELY = 0.2  # weight of a batch in what batches say of late
FEW = 2**19  # codes by which JumpReLU's thresholds are set
FIRM = 3.0  # learning rates by which ReLU's biases answer to an e of 1: more than Adam can move them
NEAR = 0.2  # of log e: the answer that p gives at once
MOST = 12 * math.log(10)  # of |log m|
CELLS = 2**24  # of codes that are looked at at once
REACH = math.log(2)  # how far, in log L0, the last correction looks
HALVINGS = 16  # of that interval
LESS = 0.97  # of the units a row that are the aim: with so many JumpReLU learns, and is loosened at the end
THIN = 0.9  # share of the steps after which a code has no more units a row than it was given, and thresholds learn
SETTLING = 250  # steps of L1 after it, at least


class Aim(NamedTuple):
    """What a fit should reach: units a row, or a share of variance unexplained, or None of both."""

    l0: float | None = None
    fvu: float | None = None

    def __bool__(self) -> bool:
        return self != NO_AIM

    def missed(self, l0: float, fvu: float) -> bool:
        """Whether what was reached is more than 5 % off."""
        return any(aim is not None and abs(it / aim - 1) > 0.05 for it, aim in zip((l0, fvu), self, strict=True))

    def __repr__(self) -> str:
        return f"target_l0={self.l0:g}" if self.l0 is not None else f"target_fvu={self.fvu}"


NO_AIM = Aim()


def check(aim: Aim, codec: Codec, objective: Objective, inference: str) -> None:
    """Raise ValueError, with a sentence, where nothing can be dialled.

    Parameters
    ----------
    aim : Aim
        One that is not empty.
    codec : Codec
    objective : Objective
    inference : str
        By which codes are made.
    """
    part = part_of(codec.code_activation)
    if aim.l0 is not None and aim.fvu is not None:
        raise ValueError(f"target_l0={aim.l0:g} and target_fvu={aim.fvu} are two aims for one dial: leave one out")
    if not isinstance(part, ReLU | TopK | BatchTopK | JumpReLU):
        raise ValueError(
            f"{aim} sets the sparsity of TopK, BatchTopK, JumpReLU or ReLU codes, and {part!r} has none to set: use"
            " code_activation='TopK(8)', or leave the target out"
        )
    if codec.encoder.deep or codec.decoder.deep:
        raise ValueError(f"{aim} takes one affine map each way: use hidden_layer_sizes=()")
    if inference != "encoder":
        raise ValueError(f"{aim} is of the encoder's codes, got inference={inference!r}: use inference='encoder'")
    if aim.l0 is not None and not (0 < aim.l0 < codec.n_units and (aim.l0 >= 1 or not hasattr(part, "k"))):
        least = "from 1" if hasattr(part, "k") else "above 0"
        raise ValueError(f"target_l0={aim.l0:g} must be {least} and less than the {codec.n_units} units of the code")
    if not hasattr(part, "k"):
        _check_penalty(aim, part, objective)


def _check_penalty(aim: Aim, part: Any, objective: Objective) -> None:
    found = [c for c, term in objective.summands if isinstance(term, L0 | L1)]
    use = f"use objective='MSE() + 0.001 * {'L0' if isinstance(part, JumpReLU) else 'L1'}()'"
    if not found:
        raise ValueError(f"{aim} turns the coefficient of a penalty, and {objective!r} has no L0 or L1: {use}")
    for c in found:
        if not isinstance(c, int | float) or c <= 0:
            raise ValueError(f"{aim} turns a coefficient that is a number above 0, got {c!r} in {objective!r}: {use}")


def aimed(part: Any, aim: Aim, n_units: int) -> Any:
    """The code activation with the k, of so many units, that the target says, where it has one."""
    if aim.l0 is None or not isinstance(part, TopK | BatchTopK):
        return part
    return type(part)(_k(part, aim.l0, n_units))


def _k(part: Any, units: float, n_units: int) -> int:
    """k for so many units a row: TopK's is the next above, as some of its units are left out in the end."""
    whole = math.ceil(units) if isinstance(part, TopK) else round(units)
    return min(n_units, max(1, whole))


def many(codec: Codec) -> int:
    """Units a row with which a code starts that is thinned out: an eighth of the columns, at most 1/16 of the units."""
    return max(1, min(codec.n_units // 16, len(codec.centre) // 8))


def at_first(codec: Codec, aim: Aim) -> float:
    """Units a row that a dial wants at first: the target, the code's k, or a 64th of its units, one at least."""
    k = getattr(part_of(codec.code_activation), "k", None)
    return float(aim.l0 or k or max(1.0, codec.n_units / 64))


def over(step: int, end: float) -> float:
    """Share of the steps that is over; 1 where they have no end."""
    return step / end if end < math.inf else 1.0


class Dial:
    """How sparse a code is in each step of a fit, and what is turned to that end.

    Parameters
    ----------
    codec : Codec
        Its k or thresholds are set in place.
    objective : Objective
        As given.
    aim : Aim
        An empty one: nothing turns after a batch.
    first : float, default=0
        Units a row at the first step, where that is more than there are to be in the end.
    """

    def __init__(self, codec: Codec, objective: Objective, aim: Aim, first: float = 0.0) -> None:
        self.codec, self.given, self.aim, self.first = codec, objective, aim, first
        self.has_k = hasattr(part_of(codec.code_activation), "k")
        self.wanted = at_first(codec, aim)
        self.steps = math.inf
        self.done, self.thin = 1.0, THIN  # shares of the steps: how many are over, and after how many it is thin
        self.log_m, self.last = self._first() if aim else 0.0, 0.0
        self.before = self.wanted  # units a row, of rows that judge, as a step found the code
        self.judges = torch.zeros(0)  # rows (M, D) that are not fitted to
        self.gap = 0.0  # how much more log FVU is on rows held out than in batches
        self.seen = 0.0  # log FVU of batches, of late

    def __bool__(self) -> bool:
        return bool(self.aim)

    @torch.no_grad()
    def _first(self) -> float:
        """log m with which L1 begins: 0 where there is no L1, no MSE or no cut.

        Of a unit alone c |x - v h|² / D + λ |h| is least with h = 0 up to vᵀx = λ D / (2 c), and vᵀx is |v| / |w| of
        its wᵀx: soft thresholding (Daubechies, Defrise & De Mol 2004). Of more units than columns none is alone, and
        √(D / K) of that λ is near the one that is found.
        """
        codec, kinds = self.codec, _kinds(self.given)
        if not isinstance(codec.code_activation, ReLU) or L1 not in kinds or MSE not in kinds:
            return 0.0
        W, V = codec.encoder.last.weight, codec.dictionary()
        assert V is not None
        cut = -(W @ codec.centre + codec.encoder.bias)
        level = float((cut * torch.linalg.vector_norm(V, dim=0) / torch.linalg.vector_norm(W, dim=1)).mean())
        D, K = V.shape
        least = 2 * kinds[MSE] * level / D * math.sqrt(min(1.0, D / K))
        return math.log(least / kinds[L1]) if least > 0 else 0.0

    @property
    def objective(self) -> Objective:
        """With the coefficients in force."""
        if self.has_k or not self.log_m:
            return self.given
        m = math.exp(self.log_m)
        return Objective(tuple((m * c if isinstance(term, L0 | L1) else c, term) for c, term in self.given.summands))

    @property
    def now(self) -> float:
        """Units a row that are wanted in this step."""
        if not self.thins:
            return self.wanted
        s = self.done / self.thin
        return float(self.first ** (1 - s) * self.wanted**s)

    @property
    def thins(self) -> bool:
        """Whether there are still more units a row than are wanted in the end."""
        return self.first > self.wanted and self.done < self.thin

    @property
    def waits(self) -> bool:
        """Whether thresholds do not yet learn."""
        return self.done < self.thin and self.sets_thresholds

    @property
    def _put(self) -> float:
        """Units a row that are kept to in this step."""
        less = self.aim.l0 is not None and self.sets_thresholds
        return self.now * (LESS if less else 1.0)

    @property
    def sets_thresholds(self) -> bool:
        """Whether they are set before each batch."""
        return bool(self.aim) and isinstance(part_of(self.codec.code_activation), JumpReLU)

    @property
    def sets_k(self) -> bool:
        """Whether k is not all the while as it was given."""
        return self.has_k and self.turns

    @property
    def turns(self) -> bool:
        """Whether anything is turned at all."""
        return bool(self.aim) or self.first > self.wanted

    @torch.no_grad()
    def begin(self, step: int, end: float) -> None:
        """Set k or thresholds for a step of so many, or of steps without end.

        BatchTopK's threshold is then that of the last batch alone.
        """
        self.steps, self.done = end, over(step, end)
        if isinstance(part_of(self.codec.code_activation), ReLU):
            self.thin = min(THIN, 1 - SETTLING / end)
        if self.sets_k:
            _set_k(self.codec, self.now)
        turning = self.aim.fvu is not None or self.thins
        if turning and isinstance(part_of(self.codec.code_activation), BatchTopK):
            self.codec.code_activation.batches.zero_()
        if self.aim and not self.has_k:
            some = max(32, FEW // self.codec.n_units)
            first = step * some % max(1, len(self.judges) - some)
            lever = _Lever(self.codec, self.judges[first : first + some])
            self.before = max(lever.now(), 0.1 / self.codec.n_units)
            if self.sets_thresholds:
                lever.code(self._put)

    @torch.no_grad()
    def rest(self) -> None:
        """Between epochs the code is the one that was asked for, however many units a row it learns with.

        Where epochs are comparable, BatchTopK's threshold leaves the rows that judge as many units as are wanted.
        """
        if self.sets_k:
            _set_k(self.codec, self.wanted)
        if self.first > self.wanted and self.comparable and len(self.judges):
            _Lever(self.codec, _few(self.judges, self.codec)).code(self.wanted)

    @property
    def comparable(self) -> bool:
        """Whether what rows held out say after an epoch can be set against what they say after another."""
        return not self.aim

    def answer(self, fvu: float, rate: tuple[float, float]) -> None:
        """Answer to the batch of the step that has begun.

        Parameters
        ----------
        fvu : float
            Of the batch, before its step.
        rate : (float, float)
            The learning rate, and the largest.
        """
        gain = min(0.1, max(0.01, 10 / self.steps))
        if self.aim.fvu is not None and self.done >= WAIT and fvu > 0:
            self.seen += (LATELY if self.seen else 1.0) * (math.log(fvu) - self.seen)
            off = math.log(fvu / self.aim.fvu) + self.gap
            off *= self.done if off > 0 else 1.0
            log_wanted = math.log(self.wanted) + 2 * gain * _within(off, 0.5)
            self.wanted = min(float(self.codec.n_units), max(1.0, math.exp(log_wanted)))
        gain *= rate[0] / rate[1]
        if self.has_k:
            return
        e = math.log(self.before / self._put)
        self.last, before = e, self.last
        self.log_m = _within(self.log_m + NEAR * (e - before) + gain * _within(e, 1.0), MOST)
        if not self.sets_thresholds:
            self.codec.encoder.bias.detach().sub_(FIRM * rate[0] * _within(e, 1.0))

    def hear(self, fvu: float) -> None:
        """The FVU of rows held out, after an epoch: batches are fitted to, and say too little."""
        if self.aim.fvu is not None and self.seen and fvu > 0:
            self.gap = math.log(fvu) - self.seen

    def state(self) -> list[float]:
        """Numbers that `load` takes."""
        return [self.wanted, self.log_m, self.last, self.gap, self.seen]

    def load(self, numbers: list[float]) -> None:
        """Take up a state that `state` gave."""
        self.wanted, self.log_m, self.last, self.gap, self.seen = numbers
        if self.aim and self.has_k:
            _set_k(self.codec, self.wanted)


@torch.no_grad()
def settle(codec: Codec, x: Tensor, aim: Aim, loss: Any) -> tuple[float, float]:
    """Set the code so that rows x (N, D) have the target: L0 as it is said, or of least distance in log FVU.

    BatchTopK's threshold is set, JumpReLU's take one factor, TopK gets its k and a level. ReLU's biases take one shift,
    and its codes one factor where the loss is a squared error and the encoder's matrix is its own.

    Returns
    -------
    l0, fvu : float
        What these rows then have.
    """
    codec.train(False)
    some = _few(x, codec).to(codec.centre)
    lever = _Lever(codec, some, loss)
    if aim.l0 is not None:
        return lever.put(aim.l0)
    assert aim.fvu is not None
    off: dict[float, float] = {}  # by the number of units
    near = math.log(max(1.0, lever.now()))
    low, high = near - REACH, near + REACH
    for _ in range(HALVINGS):  # FVU falls with the number of units, near the code that was trained
        units = math.exp((low + high) / 2)
        over = math.log(max(lever.put(units)[1], 1e-30) / aim.fvu)
        off[units] = abs(over)
        low, high = ((low + high) / 2, high) if over > 0 else (low, (low + high) / 2)
    return lever.put(min(off, key=off.__getitem__))


class _Lever:
    """Units a row of rows x (N, D), set by what the code has for it."""

    def __init__(self, codec: Codec, x: Tensor, loss: Any = None) -> None:
        self.codec, self.x, self.part, self.squash = codec, x, part_of(codec.code_activation), codec.code_activation
        self.loss = loss
        self.lengthens = isinstance(self.part, ReLU) and isinstance(loss, MSE) and not codec.tied
        self.a = codec.encoder(codec.fill(x))
        if isinstance(self.part, ReLU):
            self.was = codec.encoder.bias.detach().clone()
        if self.lengthens:
            self.short = [p.detach().clone() for p in (codec.encoder.last.weight, codec.decoder.bias)]
        if isinstance(self.part, JumpReLU):
            self.was = self.squash.threshold.detach().clone().clamp(min=1e-6)
        self.order = self.a / self.was if isinstance(self.part, JumpReLU) else self.a

    def now(self) -> float:
        """Units a row as the code is."""
        return float((self._coded() > 0).sum()) / len(self.a)

    def put(self, l0: float) -> tuple[float, float]:
        """Let so many units of a row be active on average; what L0 and FVU then are."""
        h = self.code(l0)
        seen = ~torch.isnan(self.x)
        if self.lengthens:
            h = h * self._lengthen(h, seen)
        off = torch.where(seen, self.loss.mean(self.codec.decode(h)) - self.x, 0.0).square().sum(dtype=torch.float64)
        all_ = torch.where(seen, self.x - self.codec.centre, 0.0).square().sum(dtype=torch.float64)
        return float((h > 0).sum()) / len(h), float(off / all_)

    def _lengthen(self, h: Tensor, seen: Tensor) -> Tensor:
        """Let codes be g h with the g for which mean(x̂) + g (x̂ - mean(x̂)) is nearest to the rows; g."""
        (W, b), codec = self.short, self.codec
        codec.decoder.bias.copy_(b)
        x_hat = codec.decode(h)
        mean = torch.where(seen, x_hat, 0.0).sum(0) / seen.sum(0).clamp(min=1)
        off, target = (torch.where(seen, some - mean, 0.0) for some in (x_hat, self.x))
        size = off.square().sum()
        g = torch.where(size > 0, (off * target).sum() / size, 1.0)
        codec.encoder.last.weight.copy_(g * W)
        codec.encoder.bias.mul_(g)
        codec.decoder.bias.copy_(mean + g * (b - mean))
        return g

    def code(self, l0: float) -> Tensor:
        """The codes (N, K) with so many units of a row active on average."""
        if isinstance(self.part, TopK):
            k = min(self.a.shape[1], math.ceil(l0))
            self.codec.code_activation = TopK(k)
            least, more = self._edge(self._coded(), l0)
            self.codec.code_activation = TopK(k, float(f"{float(least):.6g}") if more > 0 else 0.0)
            return self._coded()
        least, _ = self._edge(self.order, l0)
        if isinstance(self.part, ReLU):
            self.codec.encoder.bias.copy_(self.was - least)
            return torch.relu(self.a - least)
        least = least.clamp(min=0.0)
        self.squash.threshold.copy_(self.was * least if isinstance(self.part, JumpReLU) else least)
        return self._coded()

    def _edge(self, order: Tensor, l0: float) -> tuple[Tensor, Tensor]:
        """Half-way from the last cell that is to be active to the first that is not; the latter."""
        number = min(order.numel() - 1, max(1, round(l0 * len(self.x))))
        last = order.flatten().topk(number + 1).values[-2:]
        return last.mean(), last[-1]

    def _coded(self) -> Tensor:
        h: Tensor = self.codec.code_activation(self.a)
        return h


def told(aim: Aim, found: tuple[float, float], objective: Objective, part: Any, D: int, noise: float) -> str:
    """What was found: L0, FVU, k or λ; and for a squared error with L1 what they are as densities.

    Parameters
    ----------
    aim : Aim
    found : (l0, fvu)
    objective : Objective
        With the coefficients found.
    part : Part
        The code activation, with the k found.
    D : int
    noise : float
        Standard deviation of what is left of a cell, in the scaled space.
    """
    l0, fvu = found
    set_by = repr(part) if hasattr(part, "k") else repr(objective)
    said = f"L0 {l0:.4g}, FVU {fvu:.3g} for {aim}, by {set_by}"
    kinds = _kinds(objective)
    if isinstance(part, ReLU) and set(kinds) == {MSE, L1} and len(objective.summands) == 2:
        scale = 2 * noise**2 * kinds[MSE] / (D * kinds[L1])
        said += f": Normal noise of scale {noise:.3g}, a Laplace prior of scale {scale:.3g}"
    return said


def _kinds(objective: Objective) -> dict[type, float]:
    """The coefficient of each kind of term, schedules at their end."""
    return {type(term): at(c, math.inf) for c, term in objective.summands}


def rounded(objective: Objective) -> Objective:
    """Coefficients of L0 and L1 to three digits."""
    summands = objective.summands
    return Objective(tuple((float(f"{c:.3g}") if isinstance(term, L0 | L1) else c, term) for c, term in summands))


def _set_k(codec: Codec, units: float) -> None:
    part = part_of(codec.code_activation)
    k = _k(part, units, codec.n_units)
    if part.k != k or getattr(part, "least", 0.0):
        part = type(part)(k)
        if isinstance(codec.code_activation, Bound):
            codec.code_activation.part = part
        else:
            codec.code_activation = part


def _few(x: Tensor, codec: Codec) -> Tensor:
    return x[:: max(1, -(-len(x) * codec.n_units // CELLS))]


def _within(value: float, most: float) -> float:
    return max(-most, min(most, value))
