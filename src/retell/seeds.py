"""Private randomness: every stream is a pure function of the seed and of what it is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from retell.spread import threads

__all__ = ["generator", "permutation", "row_order", "seed_of"]


def seed_of(random_state: Any) -> int:
    """The seed that a `random_state` stands for; the global generators are left alone.

    Parameters
    ----------
    random_state : None, int or numpy.random.RandomState
        None draws fresh entropy, an int from 0 on is itself, a RandomState is drawn from.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, int | np.integer) and random_state >= 0:
        return int(random_state)
    raise ValueError(
        f"random_state={random_state!r} is not possible: an int from 0 on, a"
        " numpy.random.RandomState or None was expected"
    )


def generator(seed: int, *stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for (seed, stream), for example (seed, NOISE, epoch)."""
    state = np.random.SeedSequence([seed, *stream]).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def row_order(seed: int, epoch: int, n_rows: int) -> torch.Tensor:
    """The order of the rows in an epoch, a permutation (n_rows,)."""
    return permutation(n_rows, generator(seed, ORDER, epoch))


def permutation(n: int, draw: torch.Generator) -> torch.Tensor:
    """0 to n - 1 in an order (n,) that one thread draws: torch would have others help to count, which then go on
    turning for milliseconds on cores that are wanted next.
    """
    with threads(1):
        return torch.randperm(n, generator=draw)


START, ORDER, NOISE, SPLIT, HELD_OUT, HIDE, SKETCH, NORMS, SAMPLE = range(9)
