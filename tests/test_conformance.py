"""scikit-learn's contract: its own checks in eight settings, and the company an estimator keeps."""

import ast
import inspect
import warnings
from dataclasses import fields

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from retell import BCE, KL, L1, L2, MSE, Autoencoder, Contractive, Gaussian, Huber, Mask, TopK, UnitNorm
from retell.settings import Settings

SETTINGS = {
    "default": {},
    "exact linear": {"hidden_layer_sizes": ()},
    "hidden layers": {"hidden_layer_sizes": (16, 8), "activation": "tanh"},
    "tied": {"tied": True, "hidden_layer_sizes": (8,)},
    "sparse": {"objective": "MSE() + 0.001 * L1()", "code_activation": "ReLU()"},
    "top-k": {"code_activation": "TopK(1)"},
    "denoising": {"corruption": "Mask(0.3)"},
    "contractive": {"objective": "MSE() + 0.1 * Contractive()"},
}


@parametrize_with_checks(
    [
        Autoencoder(**setting, max_iter=3, early_stopping=early_stopping)
        for setting in SETTINGS.values()
        for early_stopping in (True, False)
    ]
)
def test_scikit_learn_finds_nothing(estimator, check):
    with warnings.catch_warnings():
        # scikit-learn's tiny tables often have no more columns than units; that warning has its own test
        warnings.filterwarnings("ignore", message="the code has .* nothing holds it back", category=UserWarning)
        check(estimator)


@pytest.fixture(scope="module")
def rows():
    return load_wine().data


def weights(model):
    return {name: value.detach().numpy().tobytes() for name, value in model.codec_.state_dict().items()}


def small(**given):
    return Autoencoder(**{"n_components": 3, "max_iter": 2, "random_state": 0, **given})


@pytest.mark.parametrize(
    "objectives",
    [
        ["MSE()", "MSE() + 0.01 * L1()", "Huber(delta=0.5)"],
        [MSE(), MSE() + 0.01 * L1(), Huber(0.5), MSE() + 0.1 * L2() + 0.1 * Contractive()],
    ],
    ids=["text", "objects"],
)
def test_grid_search_over_objectives(rows, objectives):
    search = GridSearchCV(small(), {"objective": objectives}, cv=2, error_score="raise").fit(rows)
    assert search.cv_results_["mean_test_score"].shape == (len(objectives),)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_params_["objective"] in objectives
    assert repr(search.best_estimator_.objective_) == repr(search.best_params_["objective"]).strip("'")


def test_text_and_objects_are_one_setting(rows):
    words = small(objective="MSE() + 0.01 * L1()", code_activation="TopK(2)", corruption="Mask(0.1)").fit(rows)
    objects = small(objective=MSE() + 0.01 * L1(), code_activation=TopK(2), corruption=Mask(0.1)).fit(rows)
    assert weights(words) == weights(objects)


def test_in_a_pipeline(rows):
    model = make_pipeline(StandardScaler(), small())
    codes = model.fit_transform(rows)
    assert codes.shape == (len(rows), 3)
    assert np.array_equal(codes, model.transform(rows))
    assert model.inverse_transform(codes).shape == rows.shape
    assert 0 < model.score(rows) < 1
    assert list(model.get_feature_names_out()) == ["autoencoder0", "autoencoder1", "autoencoder2"]


def test_clone_with_parts_as_parameters(rows):
    given = {
        "objective": MSE() + 0.01 * L1(),
        "corruption": Gaussian(0.1),
        "code_activation": TopK(2),
        "constraint": UnitNorm(),
    }
    model = small(**given).fit(rows)
    copy = clone(model)
    assert not hasattr(copy, "codec_")
    assert {name: copy.get_params()[name] for name in given} == given
    assert weights(copy.fit(rows)) == weights(model)


@pytest.mark.parametrize(("library", "frame"), [("pandas", pd.DataFrame), ("polars", pl.DataFrame)])
def test_set_output(rows, library, frame):
    model = small().fit(rows)
    plain = model.transform(rows)
    codes = model.set_output(transform=library).transform(rows)
    assert isinstance(codes, frame)
    assert list(codes.columns) == ["autoencoder0", "autoencoder1", "autoencoder2"]
    assert np.array_equal(codes.to_numpy(), plain)
    assert isinstance(clone(model).set_output(transform=library).fit_transform(rows), frame)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("early_stopping", [True, False])
def test_y_is_ignored(rows, setting, early_stopping):
    with_y = small(**setting, early_stopping=early_stopping).fit(rows, load_wine().target)
    without = small(**setting, early_stopping=early_stopping).fit(rows)
    assert weights(with_y) == weights(without)
    assert with_y.transform(rows).tobytes() == without.transform(rows).tobytes()


@pytest.mark.parametrize("library", [pd, pl])
def test_names_of_frames(rows, library):
    names = load_wine().feature_names
    frame = library.DataFrame(dict(zip(names, rows.T, strict=True)))
    model = small().fit(frame)
    assert list(model.feature_names_in_) == names
    assert list(model.get_feature_names_out()) == ["autoencoder0", "autoencoder1", "autoencoder2"]
    assert list(model.get_feature_names_out(names)) == ["autoencoder0", "autoencoder1", "autoencoder2"]
    with pytest.raises(ValueError, match="input_features"):
        model.get_feature_names_out([*names[1:], names[0]])
    assert np.array_equal(model.transform(frame), small().fit(rows).transform(rows))
    with pytest.raises(ValueError, match="feature names should match"):
        model.transform(frame[names[::-1]])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.transform(rows)


def test_refit_without_names_forgets_them(rows):
    model = small().fit(pd.DataFrame(rows, columns=load_wine().feature_names))
    model.fit(rows)
    assert not hasattr(model, "feature_names_in_")
    model.transform(rows)


def test_numpy_numbers_are_numbers(rows):
    plain = small(hidden_layer_sizes=(8,), batch_size=16, learning_rate_init=0.01, tol=0.0).fit(rows)
    given = small(
        n_components=np.int64(3),
        hidden_layer_sizes=(np.int32(8),),
        batch_size=np.int16(16),
        learning_rate_init=np.float32(0.01),
        tol=np.float64(0.0),
        max_iter=np.uint8(2),
        random_state=np.int64(0),
        early_stopping=np.True_,
    )
    close = given.fit(rows)
    assert close.n_components_ == 3
    assert type(close.n_components_) is int
    assert close.transform(rows).shape == plain.transform(rows).shape
    # 0.01 is not a float32, so that only the other parameters can be asked for the same bits
    assert weights(clone(given).set_params(learning_rate_init=0.01).fit(rows)) == weights(plain)


def test_lists_of_widths_are_widths(rows):
    assert weights(small(hidden_layer_sizes=[8]).fit(rows)) == weights(small(hidden_layer_sizes=(8,)).fit(rows))


def test_constructor_and_settings_agree():
    """One list of parameters: the command line and the model file read `Settings`."""
    constructor = inspect.signature(Autoencoder).parameters
    assert {name: p.default for name, p in constructor.items()} == {f.name: f.default for f in fields(Settings)}
    positional = [name for name, p in constructor.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["n_components"]


def test_every_parameter_is_documented():
    head = Autoencoder.__doc__.split("Attributes\n")[0]
    for name in inspect.signature(Autoencoder).parameters:
        assert f"\n    {name} : " in head, name


def test_docs_defaults_are_the_defaults():
    for name, parameter in inspect.signature(Autoencoder).parameters.items():
        line = next(line for line in Autoencoder.__doc__.splitlines() if line.strip().startswith(f"{name} : "))
        assert ast.literal_eval(line.split("default=")[1]) == parameter.default, line


def test_fitting_changes_no_parameter(rows):
    model = small(objective="MSE() + 0.01 * KL()", code_activation="Sigmoid()", hidden_layer_sizes=[8])
    before = {name: repr(value) for name, value in model.get_params().items()}
    model.fit(rows)
    assert {name: repr(value) for name, value in model.get_params().items()} == before


def test_objective_objects_compare_and_hash():
    """GridSearchCV and clone compare parameters; a part is a value."""
    assert MSE() + 0.1 * L1() == MSE() + 0.1 * L1()
    assert hash(MSE() + 0.1 * L1()) == hash(MSE() + 0.1 * L1())
    assert BCE() != MSE()
    assert KL(0.1) != KL(0.2)
