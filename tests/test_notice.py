"""A warning names the line of the caller's own code, however deep in retell it arises."""

import warnings

import numpy as np
import pytest

from retell import Autoencoder


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).normal(size=(200, 6))


def diverges(X, path):
    Autoencoder(2, learning_rate_init=1e30, max_iter=2, random_state=0, early_stopping=False).fit(X)


def keeps_all(X, path):
    Autoencoder(4, code_activation="TopK(9)", max_iter=1, random_state=0).fit(X)


def may_learn_the_identity(X, path):
    Autoencoder(8, max_iter=1, random_state=0).fit(X)


def has_an_empty_column(X, path):
    Autoencoder(2, max_iter=1, random_state=0).fit(np.c_[X, np.full(len(X), np.nan)])


def are_other_rows(X, path):
    Autoencoder(2, max_iter=1, random_state=0).fit(X).transform(1e6 * X)


def have_a_first_row_like_names(X, path):
    np.savetxt(path, np.vstack([2019 + np.arange(6), X]), delimiter=",")
    Autoencoder(1, max_iter=1, random_state=0).fit(path)


@pytest.mark.parametrize(
    "call",
    [diverges, keeps_all, may_learn_the_identity, has_an_empty_column, are_other_rows,
     have_a_first_row_like_names],
    ids=lambda call: call.__name__,
)  # fmt: skip
def test_a_warning_names_the_callers_line(call, X, tmp_path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call(X, tmp_path / "rows.csv")
    assert told
    first, last = call.__code__.co_firstlineno, max(line for *_, line in call.__code__.co_lines() if line)
    assert all(one.filename == __file__ and first < one.lineno <= last for one in told), [str(one) for one in told]
