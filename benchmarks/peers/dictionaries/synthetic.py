"""Rows of which the features are known, in the manner of SynthSAEBench (Chanin & Garriga-Alonso, arXiv 2602.14687).

    x = Σ_i h_i v_i + b,      h_i = [i fires] max(m_i + s_i n_i, 0) · (in a tree: the parent's h over its m)

Features fire by a Gaussian copula of low rank, each with its probability of a Zipf law; those of a tree only where
their parent fires, and of siblings one at a time. Probabilities of a tree's features are raised so that they fire
about as often as the law has it. The v_i are unit vectors, pushed apart.

Who sits in a tree is drawn only where its parent fires, which takes no more time than what fires; roots and features
of no tree are drawn for every row.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import ndtr, ndtri

BLOCK = 1024  # rows of one generator
PUSHES, PUSH = 100, 3e-4  # steps and rate that push the vectors apart


@dataclass(frozen=True)
class Law:
    """What a world is drawn from; the defaults are those of SynthSAEBench-16k."""

    features: int = 16_384
    columns: int = 768
    exponent: float = 0.5
    """Of the Zipf law."""
    most: float = 0.4
    least: float = 5e-4
    """Probabilities of the first and the last feature."""
    trees: int = 128
    branches: int = 4
    depth: int = 3
    rank: int = 25
    correlation: float = 0.1
    """Standard deviation of the copula's factors."""
    first: float = 5.0
    last: float = 4.0
    """Mean sizes m of the first and the last feature."""
    spread: float = 0.5
    """s is |N(spread, spread²)|."""
    bias: float = 0.5
    """Length of b."""


class Codes(NamedTuple):
    """Which features fire where, row by row, and how much."""

    row: np.ndarray
    feature: np.ndarray
    size: np.ndarray
    rows: int

    @property
    def starts(self) -> np.ndarray:
        """Where each row begins."""
        return np.searchsorted(self.row, np.arange(self.rows))

    def dense(self, features: int) -> np.ndarray:
        """As an array (rows, features)."""
        full = np.zeros((self.rows, features), np.float32)
        full[self.row, self.feature] = self.size
        return full


class World:
    """The features of a law, drawn; `sample` gives rows."""

    def __init__(self, law: Law, seed: int) -> None:
        self.law = law
        rng = np.random.default_rng([seed, 0])
        N = law.features
        ranks = np.arange(1, N + 1) ** -law.exponent
        self.wanted = law.least + (law.most - law.least) * (ranks - ranks[-1]) / (ranks[0] - ranks[-1])
        self.children = trees(law)
        self.factor = rng.normal(0, law.correlation, (N, law.rank)).astype(np.float32)
        self.mean = np.linspace(law.first, law.last, N, dtype=np.float32)
        self.spread = np.abs(rng.normal(law.spread, law.spread, N)).astype(np.float32)
        self.vectors = apart(rng.normal(size=(N, law.columns)).astype(np.float32))
        b = rng.normal(size=law.columns)
        self.bias = (law.bias * b / np.linalg.norm(b)).astype(np.float32)
        self.settle()

    def settle(self) -> None:
        """What follows from probabilities, factors and trees."""
        self.probability = raised(self.wanted, self.children)
        # N(0, 1) = a row's factors and its own noise; a feature fires where that is above its threshold
        own = np.sqrt(np.maximum(1 - (self.factor.astype(float) ** 2).sum(1), 0.01))
        self.own, self.threshold = own.astype(np.float32), -ndtri(self.probability).astype(np.float32)
        below = self.children[self.children >= 0]
        self.above = np.setdiff1d(np.arange(self.law.features), below)  # roots, and features of no tree

    def sample(self, n: int, seed: int) -> tuple[np.ndarray, Codes]:
        """Rows (n, columns) and their codes; the rows of a seed are the same for every n that has them."""
        several = [(i, min(BLOCK, n - i)) for i in range(0, n, BLOCK)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            codes = list(pool.map(lambda some: self.codes(some[1], [seed, 1, some[0] // BLOCK]), several))
        x = np.empty((n, self.law.columns), np.float32)
        for (i, m), some in zip(several, codes, strict=True):
            x[i : i + m] = self.rows(some)
        ends = [i for i, _ in several]
        row = np.concatenate([some.row + i for i, some in zip(ends, codes, strict=True)])
        return x, Codes(row, *(np.concatenate(parts) for parts in zip(*(c[1:3] for c in codes), strict=True)), n)

    def blocks(self, n: int, seed: int) -> Iterator[np.ndarray]:
        """Rows alone, a block at a time; the next ones are drawn meanwhile."""
        sizes = [min(BLOCK, n - i) for i in range(0, n, BLOCK)]
        with ThreadPoolExecutor(1) as pool:
            draw = partial(pool.submit, self.codes)
            coming = draw(sizes[0], [seed, 1, 0])
            for i in range(len(sizes)):
                codes = coming.result()
                if i + 1 < len(sizes):
                    coming = draw(sizes[i + 1], [seed, 1, i + 1])
                yield self.rows(codes)

    def rows(self, codes: Codes) -> np.ndarray:
        """x of codes."""
        feature, starts, size = (torch.from_numpy(some) for some in (codes.feature, codes.starts, codes.size))
        V = torch.from_numpy(self.vectors)
        x = torch.nn.functional.embedding_bag(feature, V, starts, mode="sum", per_sample_weights=size)
        return x.numpy() + self.bias

    def codes(self, n: int, seed: list[int]) -> Codes:
        """Codes of n rows."""
        rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed)))
        shared = rng.standard_normal((n, self.law.rank), dtype=np.float32)
        row, feature = self.firing(shared, rng)
        row, feature, size = _positive(row, feature, self.sizes(feature, rng))
        found = [(row, feature, size)]
        while len(feature):
            row, feature, size = self.below(row, feature, size, shared, rng)
            found.append((row, feature, size))
        row, feature, size = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.lexsort((feature, row))
        return Codes(row[order], feature[order], size[order].astype(np.float32), n)

    def firing(self, shared: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Where roots and features of no tree fire: where a uniform number is below their chance in that row.

        Of each number the first 16 bits are drawn, and the rest only where these leave it open.
        """
        some = self.above
        own, threshold = self.own[some], self.threshold[some]
        part = torch.mm(torch.from_numpy(shared), torch.from_numpy(self.factor[some]).T).numpy()
        bound = np.ceil(2**16 * ndtr((part.max(0) - threshold) / own)).clip(max=2**16 - 1).astype(np.uint16)
        first = rng.integers(2**64, size=-(-part.size // 4), dtype=np.uint64).view(np.uint16)
        first = first[: part.size].reshape(part.shape)
        row, which = divmod(np.flatnonzero(first <= bound), len(some))
        number = (first[row, which] + rng.random(len(row))) / 2**16
        fires = number < ndtr((part[row, which] - threshold[which]) / own[which])
        return row[fires], some[which[fires]]

    def sizes(self, feature: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """m + s n of features that fire, 0 where that is negative."""
        noise = rng.standard_normal(feature.shape, dtype=np.float32)
        return np.maximum(self.mean[feature] + self.spread[feature] * noise, 0)

    def below(
        self, row: np.ndarray, feature: np.ndarray, size: np.ndarray, shared: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each feature that fires the child that fires too, if one does."""
        has = self.children[feature, 0] >= 0
        row, feature, size = row[has], feature[has], size[has]
        some = self.children[feature]  # (pairs, branches), -1 where there is none
        own = self.own[some] * rng.standard_normal(some.shape, dtype=np.float32)
        shared_part = np.einsum("pbr,pr->pb", self.factor[some], shared[row])
        child_size = self.sizes(some, rng)
        fires = (some >= 0) & (shared_part + own > self.threshold[some]) & (child_size > 0)
        which = np.where(fires, rng.random(some.shape, dtype=np.float32), -1.0).argmax(1)  # one of those that fire
        one, pair = fires.any(1), np.arange(len(some))
        share = size / self.mean[feature]
        child, child_size = some[pair, which], child_size[pair, which] * share
        return row[one], child[one], child_size[one]


def trees(law: Law) -> np.ndarray:
    """The children (features, branches) of each feature, -1 for none: breadth first over all trees."""
    children = np.full((law.features, law.branches), -1)
    level, following = np.arange(min(law.trees, law.features)), law.trees
    for _ in range(law.depth):
        some = following + np.arange(len(level) * law.branches)
        following += len(some)
        some = np.where(some < law.features, some, -1)
        children[level] = some.reshape(len(level), law.branches)
        level = some[some >= 0]
    return children


def raised(wanted: np.ndarray, children: np.ndarray) -> np.ndarray:
    """Probabilities given the parent, for features that fire as often as wanted: more, since siblings exclude."""
    raised = wanted.copy()
    for parent in np.flatnonzero(children[:, 0] >= 0):
        some = children[parent][children[parent] >= 0]
        given = wanted[some] / wanted[parent]
        others = given.sum() - given if len(some) > 1 else 0.0
        raised[some] = given * (1 + others)
    return np.minimum(raised, 1.0)


def apart(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors, pushed apart by Adam on Σ_{i≠j} (v_i·v_j)² + N Σ_i (v_i·v_i - 1)²."""
    V = torch.nn.functional.normalize(torch.from_numpy(vectors)).requires_grad_()
    optimiser = torch.optim.Adam([V], lr=PUSH)
    with torch.no_grad():
        for _ in range(PUSHES):
            square = V.square().sum(1, keepdim=True)
            V.grad = 4 * (V @ (V.T @ V) - square * V + len(V) * (square - 1) * V)
            optimiser.step()
        found: np.ndarray = torch.nn.functional.normalize(V).numpy()
    return found


def _positive(row: np.ndarray, feature: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those that are above zero."""
    some = size > 0
    return row[some], feature[some], size[some]
