"""Are synthetic.py's rows those of SAELens' generator, and recovered.py's figures those of its evaluation?

    cd benchmarks; ../.bench/sparse/bin/python -m peers.dictionaries.check_synthetic [rows]

Both draw as many rows of one world: SAELens' probabilities, factors, spreads and vectors of a small law are given to
synthetic.py. Ends with 1 if a figure is further from SAELens' than chance lets it.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.synthetic import (
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
    eval_sae_on_synthetic_data,
)

from . import recovered, synthetic

SMALL = synthetic.Law(features=1024, columns=256, trees=32, depth=2)


def theirs(law: synthetic.Law) -> SyntheticModel:
    """SAELens' model of a law."""
    return SyntheticModel(
        SyntheticModelConfig(
            num_features=law.features,
            hidden_dim=law.columns,
            firing_probability=ZipfianFiringProbabilityConfig(law.exponent, law.most, law.least),
            hierarchy=HierarchyConfig(
                total_root_nodes=law.trees,
                branching_factor=law.branches,
                max_depth=law.depth,
                mutually_exclusive_portion=1.0,
                compensate_probabilities=True,
                scale_children_by_parent=True,
            ),
            orthogonalization=OrthogonalizationConfig(num_steps=synthetic.PUSHES, lr=synthetic.PUSH),
            correlation=LowRankCorrelationConfig(rank=law.rank, correlation_scale=law.correlation),
            mean_firing_magnitudes=LinearMagnitudeConfig(start=law.first, end=law.last),
            std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=law.spread, std=law.spread),
            bias=law.bias,
            seed=0,
        )
    )


def given(model: SyntheticModel, law: synthetic.Law) -> tuple[synthetic.World, list[tuple[str, float, float, float]]]:
    """A world with the model's draws, and how what is not drawn, or drawn alike, compares: name, two figures, slack."""
    generator = model.activation_generator
    world = synthetic.World(law, 0)
    factor, own = (some.numpy() for some in generator.low_rank_correlation)
    spread = generator.std_firing_magnitudes.numpy()
    vectors = model.feature_dict.feature_vectors.detach().numpy()
    lines = [
        ("largest difference of probabilities",
         float(np.abs(world.probability - generator.firing_probabilities.numpy()).max()), 0.0, 1e-5),
        ("factors: standard deviation", float(world.factor.std()), float(factor.std()), 0.002),
        ("spreads: mean", float(world.spread.mean()), float(spread.mean()), 0.05),
        ("largest cosine with another, mean", nearest(world.vectors), nearest(vectors), 0.002),
    ]  # fmt: skip
    world.factor, world.spread, world.vectors = factor, spread, vectors
    world.mean, world.bias = generator.mean_firing_magnitudes.numpy(), model.feature_dict.bias.detach().numpy()
    world.settle()
    return world, [*lines, ("largest difference of own noise", float(np.abs(world.own - own).max()), 0.0, 1e-5)]


def nearest(vectors: np.ndarray) -> float:
    """Mean over vectors of the largest |cosine| with another one."""
    cosines = np.abs(vectors @ vectors.T)
    np.fill_diagonal(cosines, 0)
    return float(cosines.max(1).mean())


def compare(world: synthetic.World, model: SyntheticModel, n: int) -> list[tuple[str, float, float, float]]:
    """Rows of both; the slack is five standard errors of the difference."""
    torch.manual_seed(1)
    mine = world.sample(n, 1)[1].dense(world.law.features)
    other = torch.cat([model.activation_generator.sample(min(1024, n - i)) for i in range(0, n, 1024)]).numpy()
    lines = []
    for name, of in {
        "active features": lambda h: (h > 0).sum(1),
        "length of x": lambda h: np.linalg.norm(h @ world.vectors + world.bias, axis=1),
        "sum of sizes": lambda h: h.sum(1),
    }.items():
        a, b = of(mine), of(other)
        lines.append((f"{name}: mean", a.mean(), b.mean(), 5 * np.sqrt((a.var() + b.var()) / n)))
        lines.append((f"{name}: standard deviation", a.std(), b.std(), 5 * b.std() / np.sqrt(n) + 0.01 * b.std()))
    a, b = (mine > 0).mean(0), (other > 0).mean(0)
    z = (a - b) / np.sqrt((a + b) / n).clip(min=1e-9)
    lines.append(("firing rates: mean square of their z", float((z**2).mean()), 1.0, 5 * np.sqrt(2 / len(z))))
    lines.append(("firing rates: largest z", float(np.abs(z).max()), 0.0, 5.0))
    pairs = [np.corrcoef((h[:, :64] > 0).T)[np.triu_indices(64, 1)] for h in (mine, other)]
    lines.append(("pairs of the first 64: correlation between them", float(np.corrcoef(*pairs)[0, 1]), 1.0, 0.05))
    lines.append(("pairs of the first 64: mean square", *(float((p**2).mean()) for p in pairs), 2e-4))
    sizes = [h.sum(0) / np.maximum((h > 0).sum(0), 1) for h in (mine, other)]
    often = np.minimum(a, b) * n > 200
    off = np.abs(sizes[0] - sizes[1])[often] * np.sqrt((np.minimum(a, b) * n)[often] / 8)
    lines.append(("sizes where they fire: largest z, about", float(off.max()), 0.0, 5.0))
    return lines


class Theirs:
    """A SAELens dictionary, as `recovered.score` reads one."""

    def __init__(self, sae: TopKTrainingSAE) -> None:
        self.encode, self.decode, self.dictionary = sae.encode, sae.decode, lambda: sae.W_dec


class Replay:
    """What SAELens' evaluation takes rows from: those of `sample`."""

    def __init__(self, codes: np.ndarray) -> None:
        self.codes, self.at = torch.from_numpy(codes), 0

    def sample(self, n: int) -> torch.Tensor:
        self.at += n
        return self.codes[self.at - n : self.at]


def figures(world: synthetic.World, model: SyntheticModel) -> list[tuple[str, float, float, float]]:
    """An untrained dictionary that begins near some of the true vectors, judged by both."""
    torch.manual_seed(2)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=world.law.columns, d_sae=300, k=8))
    start = torch.from_numpy(world.vectors[:300]) + 0.05 * torch.randn(300, world.law.columns)
    sae.W_dec.data, sae.W_enc.data = start, start.T.contiguous()
    x, codes = world.sample(5000, 3)
    mine = recovered.score(Theirs(sae), torch.from_numpy(x), codes, world.vectors)
    other = eval_sae_on_synthetic_data(sae, model.feature_dict, Replay(codes.dense(world.law.features)), 5000)
    pairs = {
        "f1": other.classification.f1_score,
        "mcc": other.mcc,
        "unique": other.uniqueness,
        "explained": other.explained_variance,
        "l0": other.sae_l0,
        "dead": other.dead_latents / 300,
        "shrinkage": other.shrinkage,
    }
    return [(f"evaluation: {word}", mine[word], theirs, 1e-4) for word, theirs in pairs.items()]


def main() -> int:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    model = theirs(SMALL)
    world, lines = given(model, SMALL)
    lines += compare(world, model, n) + figures(world, model)
    bad = 0
    for name, mine, other, slack in lines:
        fine = abs(mine - other) <= slack
        bad += not fine
        print(f"{name:50}{mine:12.5f}{other:12.5f}  within {slack:.2g}: {'yes' if fine else 'NO'}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
