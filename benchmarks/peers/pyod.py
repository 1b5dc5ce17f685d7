"""PyOD's AutoEncoder, its dropout, batch norm, decay and standardisation off where the work is to be equal."""

import torch
from pyod.models.auto_encoder import AutoEncoder

from . import nets

PACKAGES = ("pyod",)
NOTE = "its last, partial batch is left out; its weights start otherwise (Kaiming)"
CANNOT = {"encoders": "no transform"}
CODES = ("relu",)
USUAL = {"batch": 32, "rate": 1e-3}


class Watched(AutoEncoder):
    """Calls `after` where PyOD calls its hook, at the end of an epoch."""

    after = None

    def epoch_update(self):
        if self.after:
            self.after(nets.reconstruct(self.model))


def fit(X, net, epochs, batch, rate, after=None, **_):
    model = Watched(
        hidden_neuron_list=list(net[1:]),
        epoch_num=epochs,
        batch_size=batch,
        lr=rate,
        preprocessing=False,
        batch_norm=False,
        dropout_rate=0.0,
        optimizer_params={"weight_decay": 0.0},
        device=torch.device("cpu"),
        random_state=0,
        verbose=0,
    )
    model.after = after
    return nets.reconstruct(model.fit(X).model)


def default(X):
    AutoEncoder(verbose=0).fit(X)
