"""skorch's NeuralNet around the plain net."""

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import nn

from . import nets

PACKAGES = ("skorch",)
CANNOT = {"encoders": "the encoder is the module it was given: see plain"}
USUAL = {"batch": 128, "rate": 1e-2}


class Watch(Callback):
    def __init__(self, after):
        self.after = after

    def on_epoch_end(self, net, **_):
        self.after(nets.reconstruct(net.module_))


def fit(X, net, epochs, batch, rate, after=None, code="relu"):
    torch.manual_seed(0)
    model = NeuralNet(
        nn.Sequential(*nets.halves(net, code)),
        criterion=nn.MSELoss,
        optimizer=torch.optim.Adam,
        lr=rate,
        batch_size=batch,
        max_epochs=epochs,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=[Watch(after)] if after else None,
        verbose=0,
    )
    return nets.reconstruct(model.fit(X, X).module_)
