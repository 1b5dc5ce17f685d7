"""See that other libraries read what retell writes for them, and retell what they write, with equal outputs.

    PYTHONPATH=src .bench/sparse/bin/python tests/interop.py [--record]

Runs where sae-lens, eai-sparsify and dictionary-learning are installed (benchmarks/peers/requirements-sparse.txt and
requirements-sparse-no-deps.txt), with what retell itself needs. Prints a line a folder: active units of a row, and
the largest difference of codes and of reconstructions, as a share of the largest value, each side computing with its
own code in float32; more than 1e-6 is a failure. With --record, the folders of fixed weights and the outputs of the
other library go to tests/fixtures/convert, where tests/test_convert.py finds them.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from msgspec.structs import replace
from safetensors.torch import save_file

from retell import Autoencoder, BatchTopK, Gated, JumpReLU, ReLU, TopK, convert
from retell.convert.shallow import Shallow
from retell.scaling import Scaling

FIXTURES = Path(__file__).parent / "fixtures" / "convert"
D, K, ROWS = 12, 40, 24
MOST = 1e-6

ARCHITECTURES = {
    "standard": ("saelens", ReLU(), ()),
    "topk": ("saelens", TopK(5), ()),
    "batchtopk": ("saelens", BatchTopK(4), ()),
    "matryoshka": ("saelens", BatchTopK(4), (8, 20)),
    "jumprelu": ("saelens", JumpReLU(), ()),
    "gated": ("saelens", Gated(), ()),
    "sparsify": ("sparsify", TopK(5), ()),
}
"""What retell writes: for whom, which code, which prefixes."""


class Outputs(NamedTuple):
    """What a library makes of rows."""

    codes: np.ndarray
    rows: np.ndarray


# ------------------------------------------------------------------ retell's models


def rows(n: int = ROWS) -> np.ndarray:
    """Rows (n, D) with columns of different means and spreads."""
    draw = np.random.default_rng(1)
    return (draw.normal(size=(n, D)) * np.geomspace(0.3, 30, D) + np.linspace(-3, 9, D)).astype(np.float32)


def model(architecture: str) -> Autoencoder:
    """A fitted autoencoder of fixed weights, which scales each column by its own factor."""
    _, code, prefixes = ARCHITECTURES[architecture]
    draw = np.random.default_rng([len(architecture), *map(ord, architecture)])

    def normal(*shape: int, sd: float = 1.0) -> torch.Tensor:
        return torch.from_numpy(draw.normal(0, sd, shape).astype(np.float32))

    V = torch.nn.functional.normalize(normal(K, D), dim=1)
    W, b, c = V.T + normal(D, K, sd=0.1), normal(K, sd=0.3), normal(D, sd=0.2)
    own = {
        "BatchTopK": {"threshold": torch.tensor(1.25)},
        "JumpReLU": {"threshold": normal(K, sd=0.4)},
        "Gated": {"stretch": normal(K, sd=0.2), "shift": normal(K, sd=0.3)},
    }.get(type(code).__name__, {})
    made = Shallow(W.contiguous(), b, V, c, code, own, centred=False, prefixes=prefixes).autoencoder("weights")
    spreads, means = np.geomspace(0.3, 30, D), np.linspace(-3, 9, D)
    made._become(replace(made._model, scaling=Scaling(means, spreads, np.zeros(D))))
    return made


def fitted(architecture: str) -> Autoencoder:
    """An autoencoder that has learned its weights from rows."""
    _, code, prefixes = ARCHITECTURES[architecture]
    loss = f"Nested(MSE(), {prefixes})" if prefixes else "MSE()"
    term = {"ReLU": " + 0.1 * L1()", "JumpReLU": " + 0.01 * L0()", "Gated": " + 0.1 * GateL1() + GateMSE()"}
    objective = loss + term.get(type(code).__name__, "")
    it = Autoencoder(K, code_activation=code, objective=objective, max_iter=3, random_state=0)
    return it.fit(rows(500))


def made_by(it: Autoencoder, x: np.ndarray) -> Outputs:
    """What retell makes of rows."""
    return Outputs(it.transform(x), it.reconstruct(x))


# ------------------------------------------------------------------ the other libraries


def load_saelens(path: Path) -> Callable[[np.ndarray], Outputs]:
    """SAELens' own reading of a folder."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(str(path))
    return lambda x: _outputs(sae.encode, sae.decode, x)


def load_sparsify(path: Path) -> Callable[[np.ndarray], Outputs]:
    """sparsify's own reading of a folder."""
    from sparsify import SparseCoder

    coder = SparseCoder.load_from_disk(path)

    def made(x: np.ndarray) -> Outputs:
        with torch.no_grad():
            values, at, _ = coder.encode(torch.from_numpy(x))
            codes = torch.zeros(len(x), coder.num_latents).scatter(1, at, values)
            return Outputs(codes.numpy(), coder.decode(values, at).numpy())

    return made


def load_dictionary_learning(path: Path) -> Callable[[np.ndarray], Outputs]:
    """dictionary_learning's own reading of a folder."""
    from dictionary_learning.utils import load_dictionary

    dictionary, _ = load_dictionary(str(path), "cpu")
    return lambda x: _outputs(dictionary.encode, dictionary.decode, x)


LOADS = {
    "saelens": load_saelens,
    "sparsify": load_sparsify,
    "dictionary_learning": load_dictionary_learning,
}


def _outputs(encode: Callable[..., Any], decode: Callable[..., Any], x: np.ndarray) -> Outputs:
    with torch.no_grad():
        codes = encode(torch.from_numpy(x))
        return Outputs(codes.numpy(), decode(codes).numpy())


def saelens_folders(path: Path) -> Iterator[tuple[str, Path, Path]]:
    """Folders that SAELens writes: name, folder, and the folder that shows what it makes of it."""
    from sae_lens import saes as S

    size = {"d_in": D, "d_sae": K}
    plain = {
        "standard": (S.StandardSAE, S.StandardSAEConfig(**size)),
        "topk": (S.TopKSAE, S.TopKSAEConfig(**size, k=5)),
        "topk-rescaled": (S.TopKSAE, S.TopKSAEConfig(**size, k=5, rescale_acts_by_decoder_norm=True)),
        "jumprelu": (S.JumpReLUSAE, S.JumpReLUSAEConfig(**size)),
        "jumprelu-uncentred": (S.JumpReLUSAE, S.JumpReLUSAEConfig(**size, apply_b_dec_to_input=False)),
        "gated": (S.GatedSAE, S.GatedSAEConfig(**size)),
        "gated-uncentred": (S.GatedSAE, S.GatedSAEConfig(**size, apply_b_dec_to_input=False)),
    }
    for name, (kind, config) in plain.items():
        sae = kind(config)
        _randomise(sae)
        sae.save_model(path / name)
        yield name, path / name, path / name
    training = {
        "training-topk": (S.TopKTrainingSAE, S.TopKTrainingSAEConfig(**size, k=5)),
        "training-batchtopk": (S.BatchTopKTrainingSAE, S.BatchTopKTrainingSAEConfig(**size, k=4)),
        "training-matryoshka": (
            S.MatryoshkaBatchTopKTrainingSAE,
            S.MatryoshkaBatchTopKTrainingSAEConfig(**size, k=4, matryoshka_widths=[8, 20, K]),
        ),
        "training-jumprelu": (S.JumpReLUTrainingSAE, S.JumpReLUTrainingSAEConfig(**size)),
    }
    for name, (kind, config) in training.items():
        sae = kind(config)
        _randomise(sae)
        sae.save_model(path / name)
        kept = name.replace("training", "inference")
        sae.save_inference_model(path / kept)
        yield name, path / name, path / kept
        yield kept, path / kept, path / kept


def sparsify_folders(path: Path) -> Iterator[tuple[str, Path, Path]]:
    """Folders that sparsify writes."""
    from sparsify import SparseCoder, SparseCoderConfig

    for name, unit in (("unit", True), ("free", False)):
        coder = SparseCoder(D, SparseCoderConfig(num_latents=K, k=5, normalize_decoder=unit))
        _randomise(coder)
        if unit:
            coder.set_decoder_norm_to_unit_norm()
        coder.save_to_disk(path / name)
        yield name, path / name, path / name


def dictionary_learning_folders(path: Path) -> Iterator[tuple[str, Path, Path]]:
    """Folders as dictionary_learning's training writes them."""
    from dictionary_learning import dictionary as plain
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    made = {
        "AutoEncoder": plain.AutoEncoder(D, K),
        "AutoEncoderNew": plain.AutoEncoderNew(D, K),
        "GatedAutoEncoder": plain.GatedAutoEncoder(D, K),
        "JumpReluAutoEncoder": plain.JumpReluAutoEncoder(D, K),
        "AutoEncoderTopK": AutoEncoderTopK(D, K, 5),
        "BatchTopKSAE": BatchTopKSAE(D, K, 4),
        "BatchTopKSAE-unset": BatchTopKSAE(D, K, 4),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(D, K, 4, [8, 12, 20]),
    }
    for name, dictionary in made.items():
        _randomise(dictionary)
        if name.endswith("-unset"):
            dictionary.threshold.fill_(-1.0)
        folder = path / name
        folder.mkdir(parents=True)
        torch.save(dictionary.state_dict(), folder / "ae.pt")
        trainer = {"dict_class": type(dictionary).__name__, "activation_dim": D, "dict_size": K}
        if "k" in dictionary.state_dict():
            trainer["k"] = int(dictionary.k)
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
        yield name, folder, folder


WRITES = {
    "saelens": saelens_folders,
    "sparsify": sparsify_folders,
    "dictionary_learning": dictionary_learning_folders,
}


@torch.no_grad()
def _randomise(module: torch.nn.Module) -> None:
    """Fixed weights that leave nothing at its default."""
    draw = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=draw, dtype=torch.float32)
            noise = 0.3 * noise.abs() + 0.5 if "threshold" in name else 0.4 * noise
            value.copy_(noise.to(value.dtype))


# ------------------------------------------------------------------ the comparison


def compare(name: str, ours: Outputs, theirs: Outputs) -> bool:
    """Print the largest differences; whether they are rounding."""
    off = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, theirs, strict=True)]
    active = float((theirs.codes != 0).sum(1).mean())
    good = max(off) <= MOST
    print(f"{name:<52}{active:>8.1f}{off[0]:>12.1e}{off[1]:>12.1e}  {'' if good else 'DIFFERENT'}")
    return good


def record(name: str, folder: Path, x: np.ndarray, theirs: Outputs) -> None:
    """Keep a folder and what the other library makes of rows."""
    place = FIXTURES / name
    shutil.copytree(folder, place / "folder")
    arrays = {"x": x, "codes": theirs.codes, "rows": theirs.rows}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
    save_file(tensors, place / "outputs.safetensors")


def written_by_retell(path: Path, *, keep: bool) -> Iterator[bool]:
    for start in (model, fitted):
        for name, (to, *_) in ARCHITECTURES.items():
            it, x = start(name), rows()
            folder = path / f"{start.__name__}-{name}"
            convert.write(it, folder, to=to)
            theirs = LOADS[to](folder)(x)
            yield compare(f"retell ({start.__name__}) -> {to}: {name}", made_by(it, x), theirs)
            if keep and start is model:
                record(f"retell-{name}", folder, x, theirs)


def written_by_others(path: Path, *, keep: bool) -> Iterator[bool]:
    x = rows() / np.geomspace(0.3, 30, D).astype(np.float32)
    for library, folders in WRITES.items():
        for name, folder, shown in folders(path / library):
            theirs = LOADS[library](shown)(x)
            yield compare(f"{library} -> retell: {name}", made_by(convert.read(folder), x), theirs)
            if keep:
                record(f"{library}-{name}", folder, x, theirs)


def main() -> int:
    keep = "--record" in sys.argv[1:]
    # dictionary_learning imports a runner of language models, which is not needed to load a dictionary
    sys.modules.setdefault("nnsight", types.ModuleType("nnsight")).LanguageModel = object
    if keep:
        shutil.rmtree(FIXTURES, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):
            import sparsify  # noqa: F401  # says on import that it has no kernels
        print(f"{'':<52}{'active':>8}{'codes':>12}{'rows':>12}")
        good = [*written_by_retell(Path(folder), keep=keep), *written_by_others(Path(folder), keep=keep)]
    print(f"{sum(good)} of {len(good)} equal to {MOST:g}")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
