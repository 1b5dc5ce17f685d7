"""Keras on its JAX backend."""

import os

os.environ["KERAS_BACKEND"] = "jax"
import keras

PACKAGES = ("keras", "jax")
NOTE = "XLA takes as many threads as there are cores"
CANNOT = {"encoders": "not measured"}
USUAL = {"batch": 32, "rate": 1e-3}


class Watch(keras.callbacks.Callback):
    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_epoch_end(self, *_, **__):
        self.after(lambda X: self.model.predict(X, batch_size=8192, verbose=0))


def fit(X, net, epochs, batch, rate, after=None, code="relu"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((net[0],))])
    for i, width in enumerate((*net[1:], *net[-2::-1])):
        last, at_code = i == 2 * len(net) - 3, i == len(net) - 2
        linear = last or (at_code and code != "relu")
        model.add(keras.layers.Dense(width, activation="linear" if linear else "relu"))
    model.compile(optimizer=keras.optimizers.Adam(rate), loss="mse")
    model.fit(X, X, batch_size=batch, epochs=epochs, verbose=0, callbacks=[Watch(after)] if after else None)
    return lambda X: model.predict(X, batch_size=8192, verbose=0)
