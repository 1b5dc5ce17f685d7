"""What is asked of every library alike, and the rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

BATCH = 4096


@dataclass(frozen=True)
class Asked:
    """One dictionary: its code and how it is trained."""

    code: str
    """TopK, BatchTopK, JumpReLU or L1."""
    K: int
    amount: float
    """k, or the coefficient of the penalty."""
    steps: int = 100
    rate: float = 3e-3
    seed: int = 0
    precision: str = "float32"
    """bfloat16: in the library's own mixed precision, or torch's where it has none."""

    @property
    def rise(self) -> int:
        """Steps until rates and penalties are at their largest."""
        return max(1, self.steps // 20)

    @property
    def fall(self) -> int:
        """Steps in which the rate falls to zero at the end."""
        return max(1, self.steps // 5)

    def share(self, step: int) -> float:
        """Of the largest rate, at a step from 0."""
        return max(0.0, min(1.0, (step + 1) / self.rise, (self.steps - step) / self.fall))

    def mixed(self) -> torch.autocast:
        """torch's mixed precision, switched on for bfloat16."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16")


@cache
def rows(data: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to train on and to test, float32, in their own units. `data` is a folder with minilm_tokens_*.npy."""
    train, test = (np.load(Path(data) / f"minilm_tokens_{part}.npy").astype(np.float32) for part in ("train", "test"))
    return torch.from_numpy(train), torch.from_numpy(test)


@cache
def scaled(data: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with training rows of mean norm √D, as the libraries want them."""
    train, test = rows(data)
    factor = train.shape[1] ** 0.5 / train.norm(dim=1).mean()
    return train * factor, test * factor


def batches(n: int, epochs: int, seed: int, most: int = BATCH) -> Iterator[torch.Tensor]:
    """Numbers of rows: every epoch all of them in another order, in batches of equal size, at most `most`."""
    several = -(-n // most)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(n, generator=generator)
        yield from (order[n * i // several : n * (i + 1) // several] for i in range(several))
