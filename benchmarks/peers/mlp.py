"""scikit-learn's MLPRegressor fitted to its own input."""

import warnings

from sklearn.neural_network import MLPRegressor

PACKAGES = ("scikit-learn", "numpy", "scipy")
CANNOT = {"encoders": "MLPRegressor has no transform"}
CODES = ("relu",)
USUAL = {"batch": 200, "rate": 1e-3}


def fit(X, net, epochs, batch, rate, after=None, **_):
    model = MLPRegressor(
        hidden_layer_sizes=(*net[1:], *net[-2:0:-1]),
        batch_size=batch,
        learning_rate_init=rate,
        alpha=0.0,
        max_iter=epochs,
        tol=0.0,
        n_iter_no_change=epochs + 1,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns whenever max_iter is what ends a fit
        if not after:
            return model.fit(X, X).predict
        for _ in range(epochs):
            model.partial_fit(X, X)
            after(model.predict)
    return model.predict
