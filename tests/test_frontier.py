"""Fits in step: each is what it would be alone, the rows are read once, and one that fails costs only itself."""

import csv
import warnings

import numpy as np
import pytest
import torch

import retell.estimator
import retell.plan
import retell.rows.blocks
import retell.scaled
import retell.streaming
from retell import Autoencoder, TopK, frontier, load
from retell.__main__ import main
from retell.batches import Common
from retell.lockstep import in_step
from retell.metrics import dead_share, fvu, l0
from retell.rows.shards import Shards
from retell.solvers.dense import Dense

SMALL = {"hidden_layer_sizes": (), "max_iter": 3, "batch_size": 32, "precision": "float64", "random_state": 0}


def draw(n=600, d=6, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)).astype(dtype)


def same(model, alone):
    """Whether two models are one, to the bit, in all that was fitted."""
    ours, theirs = model.codec_.state_dict(), alone.codec_.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    for name in ("history_", "loss_curve_", "validation_scores_", "best_loss_", "pca_score_", "n_iter_", "solver_",
                 "dialled_", "n_left_out_"):  # fmt: skip
        assert getattr(model, name) == getattr(alone, name), name
    assert repr(model.objective_) == repr(alone.objective_)
    np.testing.assert_array_equal(model.density_.noise, alone.density_.noise)


def check_alone(found, base, fit):
    """Each model of a frontier is the one that `fit` makes of the same autoencoder."""
    for point in found.points:
        assert not point.error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same(point.model, fit(Autoencoder(**{**base, **point.settings})))


SWEEPS = {
    "k": ({"n_components": 12}, {"code_activation": [TopK(1), TopK(2), TopK(4)]}),
    "batch k": ({"n_components": 12, "code_activation": "BatchTopK(2)"}, {"target_l0": [1, 2.5]}),
    "jump": (
        {"n_components": 12, "code_activation": "JumpReLU()", "objective": "MSE() + 0.01 * L0()"},
        {"target_l0": [2, 4]},
    ),
    "lambda": (
        {"n_components": 12, "code_activation": "ReLU()", "early_stopping": False},
        {"objective": ["MSE() + 0.01 * L1()", "MSE() + 0.1 * L1()"]},
    ),
    "solvers": ({"n_components": 64, "code_activation": "TopK(3)"}, {"solver": ["sparse", "dense", "descend"]}),
    "single": (
        {"n_components": 64, "solver": "sparse", "precision": "auto"},
        {"code_activation": ["TopK(1)", "TopK(4)"]},
    ),
    "error": ({"n_components": 12, "code_activation": "BatchTopK(2)"}, {"target_fvu": [0.3, 0.5]}),
    "aux": ({"n_components": 32, "objective": "MSE() + 0.1 * AuxK(4)"}, {"code_activation": ["TopK(1)", "TopK(2)"]}),
    "noise": (
        {"n_components": 3, "hidden_layer_sizes": (8,), "corruption": "Mask(0.2)"},
        {"objective": ["MSE()", "MSE() + 0.1 * L2()"]},
    ),
    "ends": ({"n_components": 12, "code_activation": "TopK(2)"}, {"max_iter": [1, 4, 2]}),
    "groups": ({"code_activation": "TopK(2)"}, {"n_components": [8, 12], "batch_size": [32, 50]}),
    "seeds": ({"n_components": 12, "code_activation": "TopK(2)"}, {"random_state": [0, 1]}),
    "closed": ({}, {"n_components": [1, 2]}),
    "outliers": ({"n_components": 12, "code_activation": "TopK(2)"}, {"max_norm": [3.0, None]}),
}


@pytest.mark.filterwarnings("ignore:.*was not reached")
@pytest.mark.parametrize("name", SWEEPS)
def test_each_fit_is_what_it_is_alone(name, two_threads):
    X, (base, lists) = draw(), SWEEPS[name]
    X[::97] *= 20
    base = {**SMALL, **base}
    found = frontier(Autoencoder(**base), X, **lists)
    assert torch.get_num_threads() == 2
    assert len(found.points) == np.prod([len(values) for values in lists.values()])
    check_alone(found, base, lambda model: model.fit(X))


def test_holes_too():
    X = draw()
    X[np.random.default_rng(1).random(X.shape) < 0.1] = np.nan
    base = {**SMALL, "n_components": 12}
    check_alone(frontier(Autoencoder(**base), X, code_activation=["TopK(1)", "TopK(2)"]), base, lambda m: m.fit(X))


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """A folder of float16, whose rows go through a pool of 100, and how many rows are read of it."""
    for module in (retell.rows.blocks, retell.scaled):
        monkeypatch.setattr(module, "POOL", 1200)
        monkeypatch.setattr(module, "CHUNK", 120, raising=False)
    monkeypatch.setattr(retell.plan, "RUN", 60)
    monkeypatch.setattr(retell.scaled, "FEW", 0)
    for i, part in enumerate(np.split(draw(dtype=np.float16), [100, 350])):
        np.save(tmp_path / f"{i}.npy", part)
    read = {"steps": 0, "looks": 0}

    def raw(self, numbers, *args, real=Shards.raw, **kwargs):
        read["steps" if kwargs else "looks"] += len(numbers)
        return real(self, numbers, *args, **kwargs)

    monkeypatch.setattr(Shards, "raw", raw)
    return tmp_path, read


@pytest.mark.parametrize("code", ["TopK", "BatchTopK"])
def test_shards_are_read_as_often_for_several_fits_as_for_one(shards, code):
    folder, read = shards
    base = {**SMALL, "n_components": 12}
    Autoencoder(**base, code_activation=f"{code}(2)").fit(folder)
    once = dict(read)
    read.update(steps=0, looks=0)
    found = frontier(Autoencoder(**base), folder, code_activation=[f"{code}({k})" for k in (1, 2, 3, 4)])
    assert read["steps"] == once["steps"] == 540 * 3
    assert read["looks"] <= once["looks"] + 60  # by which all are judged in the end
    check_alone(found, base, lambda model: model.fit(folder))


@pytest.fixture
def small_pool(monkeypatch):
    """Of 200 rows of six float64; sections of 64."""
    monkeypatch.setattr(retell.estimator, "POOL", 9600)
    monkeypatch.setattr(retell.streaming, "SECTION", 3072)


@pytest.mark.parametrize("n_rows", [None, 550])
@pytest.mark.parametrize("max_norm", [None, 3.0])
def test_a_stream_comes_once(small_pool, n_rows, max_norm):
    X = draw()
    X[::97] *= 20
    taken = []

    def batches():
        for i in range(0, len(X), 70):
            taken.append(i)
            yield X[i : i + 70]

    base = {**SMALL, "n_components": 12, "max_norm": max_norm}
    found = frontier(Autoencoder(**base), batches(), n_rows=n_rows, code_activation=[TopK(1), TopK(3)])
    assert len(taken) == len(set(taken)) >= 8
    check_alone(found, base, lambda model: model.fit_stream(batches(), n_rows=n_rows))


def test_a_stream_has_one_size_of_batches():
    base = Autoencoder(12, **{**SMALL, "code_activation": "TopK(2)"})
    with pytest.warns(UserWarning, match="batch_size=50 has failed.*in step with batch_size=32"):
        found = frontier(base, iter([draw()]), batch_size=[32, 50])
    assert [model is None for model in found.models] == [False, True]
    with pytest.raises(ValueError, match="batch 1 has shape"):
        frontier(base, iter([draw(), draw()[0]]), code_activation=["TopK(1)", "TopK(2)"])


def test_one_that_fails_leaves_the_others(monkeypatch):
    def step(self, x, noise, rate, real=Dense.one_step):
        if self.codec.code_activation.k == 2 and self.step == 20:
            raise RuntimeError("no more memory")
        return real(self, x, noise, rate)

    monkeypatch.setattr(Dense, "one_step", step)
    X, base = draw(), {**SMALL, "n_components": 12, "tied": True}
    codes = [TopK(1), TopK(2), "Sample()", "TopK(", TopK(4)]  # while it runs, when planned, when read
    with pytest.warns(UserWarning, match="has failed and is left out") as said:
        found = frontier(Autoencoder(**base), X, code_activation=codes)
    assert len([it for it in said if "failed and is left out" in str(it.message)]) == 3
    assert [bool(point.error) for point in found.points] == [False, True, True, True, False]
    assert found.points[1].error == "no more memory"
    assert str(found).count("no more memory") == 1
    assert np.isnan(found.points[1].fvu)
    for i, k in ((0, 1), (4, 4)):
        same(found.models[i], Autoencoder(**base, code_activation=TopK(k)).fit(X))


def test_one_that_diverges_leaves_the_others():
    X, base = draw(), {**SMALL, "n_components": 12, "code_activation": "TopK(2)"}
    with pytest.warns(UserWarning, match="diverged"):
        found = frontier(Autoencoder(**base), X, learning_rate_init=[1e300, 1e-2])
    same(found.models[1], Autoencoder(**base, learning_rate_init=1e-2).fit(X))


def test_where_all_fail_the_first_says_why():
    with pytest.raises(ValueError, match="tied=True shares"):
        frontier(Autoencoder(12, **SMALL, tied=True), draw(), code_activation=["Sample()", "Sample()"])
    X = draw()
    X[3, 2] = np.inf
    with pytest.raises(ValueError, match="inf"):
        frontier(Autoencoder(12, **SMALL), X, code_activation=[TopK(1), TopK(2)])


@pytest.mark.parametrize(
    ("lists", "sentence"),
    [
        ({}, "nothing varies"),
        ({"target_l0": 8}, "target_l0=8 is no list"),
        ({"code_activation": "TopK(2)"}, "is no list"),
        ({"target_l0": []}, "is no list"),
        ({"lambda_": [1]}, "lambda_=... is no parameter"),
        ({"target_l0": [1], "n_rows": 10}, "n_rows"),
    ],
)
def test_what_is_asked_is_checked(lists, sentence):
    with pytest.raises(ValueError, match=sentence):
        frontier(Autoencoder(12, **SMALL), draw(), **lists)


def test_the_autoencoder_comes_first():
    with pytest.raises(TypeError, match=r"an Autoencoder was expected first, then the rows; got ndarray"):
        frontier(draw(), Autoencoder(12, **SMALL), code_activation=[TopK(1)])


def test_figures_are_those_of_the_rows_given():
    X, new = draw(), draw(seed=0)[:77] + 0.1
    found = frontier(Autoencoder(12, **SMALL), X, test=new, code_activation=[TopK(1), TopK(3)])
    assert found.judged == "77 rows given"
    for point in found.points:
        model = point.model
        x, x_hat = (model.scaling_.to(some) for some in (new, model.reconstruct(new)))
        codes = model.transform(new)
        assert point.l0 == l0(codes)
        assert point.dead == dead_share(codes)
        assert point.fvu == pytest.approx(fvu(x, x_hat), rel=1e-9)
    assert found.table[1] == {"code_activation": TopK(3), "l0": 3.0, "fvu": found.points[1].fvu,
                              "dead": found.points[1].dead, "error": ""}  # fmt: skip


def test_held_out_rows_judge_by_default():
    X = draw()
    found = frontier(Autoencoder(12, **SMALL), X, code_activation=[TopK(2)])
    assert found.judged == "60 rows held out"
    assert found.points[0].fvu == pytest.approx(1 - found.models[0]._model.fitted.score, rel=1e-9)
    base = Autoencoder(12, **SMALL, early_stopping=False)
    assert frontier(base, X, code_activation=[TopK(2)]).judged.endswith("rows of the fit")


def test_without_a_seed_all_fits_share_one():
    base = Autoencoder(12, **{**SMALL, "random_state": None})
    one, other = frontier(base, draw(), code_activation=[TopK(2), "TopK(2)"]).models
    same(one, other)
    assert base.random_state is None
    assert one.random_state == other.random_state


def test_a_frontier_is_kept(tmp_path):
    X = draw()
    found = frontier(Autoencoder(12, **SMALL), X, code_activation=[TopK(1), TopK(2), TopK(4)])
    (tmp_path / "f" / "model-7").mkdir(parents=True)
    (tmp_path / "f" / "model-7" / "model.toml").touch()
    with pytest.raises(FileNotFoundError, match=r"f can't be written: there is no folder .*no$"):
        found.save(tmp_path / "no" / "f")
    found.save(tmp_path / "f")
    assert sorted(it.name for it in (tmp_path / "f").iterdir()) == [
        "frontier.csv", "frontier.png", "model-1", "model-2", "model-3",
    ]  # fmt: skip
    assert (tmp_path / "f" / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    with (tmp_path / "f" / "frontier.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, point in zip(rows, found.points, strict=True):
        assert (float(row["l0"]), float(row["fvu"])) == (point.l0, point.fvu)
        again = load(tmp_path / "f" / row["model"])
        assert repr(again.get_params()["code_activation"]).strip("'") == row["code_activation"]
        np.testing.assert_array_equal(again.transform(X), point.model.transform(X))


def test_a_line_for_each_of_the_other_settings(tmp_path):
    model = Autoencoder(12, **SMALL)
    found = frontier(model, draw(), code_activation=["TopK(2)", "BatchTopK(2)"], target_l0=[1, 2, 4])
    assert [point.label for point in found.points[2:4]] == [
        "code_activation=TopK(2), target_l0=4", "code_activation=BatchTopK(2), target_l0=1",
    ]  # fmt: skip
    found.plot(tmp_path / "two.png")
    assert (tmp_path / "two.png").stat().st_size > 1000


def test_what_several_take_in_step_is_kept_for_the_last_of_them():
    taken = []
    common = Common(taken.append(i) or i for i in range(3))
    one, other = iter(common), iter(common)
    assert [next(one), next(other), next(one)] == [0, 0, 1]
    assert taken == [0, 1]
    next(one)
    with pytest.raises(RuntimeError, match="value 1 is gone"):
        next(other)

    def broken():
        yield 1
        raise OSError("the disk is gone")

    common = Common(broken())
    one, other = iter(common), iter(common)
    assert next(one) == next(other) == 1
    for it in (one, other):
        with pytest.raises(OSError, match="the disk is gone"):
            next(it)


def test_an_interrupt_ends_all(two_threads):
    ended = []

    def course(name, stops=False):
        torch.set_num_threads(1)
        try:
            yield None
            if stops:
                raise KeyboardInterrupt
            yield None
        finally:
            ended.append(name)

    with pytest.raises(KeyboardInterrupt):
        list(in_step([course("a"), course("b", stops=True), course("c")]))
    assert sorted(ended) == ["a", "b", "c"]
    assert torch.get_num_threads() == 2


def test_the_command_writes_a_frontier(tmp_path, capsys):
    np.save(tmp_path / "x.npy", draw())
    np.save(tmp_path / "new.npy", draw()[:50])
    words = ["frontier", str(tmp_path / "x.npy"), "--test", str(tmp_path / "new.npy"), "-o", str(tmp_path / "f")]
    common = ["--n-components", "12", "--hidden-layer-sizes", "()", "--max-iter", "2", "--random-state", "0"]
    assert main([*words, *common, "--code-activation", "TopK(2), BatchTopK(2)", "--target-l0", "1,2"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0].split() == ["L0", "FVU", "dead"]
    assert said.out.splitlines()[2].startswith("code_activation=TopK(2), target_l0=2 ")
    assert "of 50 rows given" in said.out
    assert "code_activation=BatchTopK(2), target_l0=1: epoch 2" in said.err
    assert "epoch 1," not in said.err, "a line every few seconds, and one at the end of each"
    assert load(tmp_path / "f" / "model-2").transform(draw()).shape == (600, 12)
    assert (tmp_path / "f" / "frontier.png").exists()
    assert main([*words, *common, "--target-l0", "1,2"]) == 2  # it is there
    assert main([*words, *common, "--code-activation", "TopK(2)", "--target-l0", "[1]", "--force", "-q"]) == 0
    said = capsys.readouterr()
    assert not said.err.splitlines()[1:]
    assert not (tmp_path / "f" / "model-2").exists()


@pytest.mark.parametrize(
    ("more", "code", "sentence"),
    [
        (["--target-l0", "8"], 2, "nothing varies"),
        (["--code-activation", "Top(1), Top(2)"], 2, "Top"),
        (["--test", "new.txt", "--target-l0", "1,2"], 2, "there is no file or folder new.txt"),
        (["--code-activation", "Sigmoid(), Tanh()", "--target-l0", "1,2"], 3, "target_l0"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, capsys, more, code, sentence):
    np.save(tmp_path / "x.npy", draw())
    assert main(["frontier", str(tmp_path / "x.npy"), "-o", str(tmp_path / "f"), *more]) == code
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "f").exists()
