"""encdr, a Lightning module behind scikit-learn's face. Its code is always linear."""

import logging
import warnings

import torch
from encdr import ENCDR
from lightning import Callback

from . import nets

PACKAGES = ("encdr", "lightning")
NOTE = "linear code: it has no other, so compare its time, not its error"
CANNOT = {"encoders": "the encoder is a torch module: see plain"}
CODES = ("identity",)
USUAL = {"batch": 32, "rate": 1e-3}
warnings.simplefilter("ignore")
logging.getLogger("lightning").setLevel(logging.ERROR)


class Watch(Callback):
    def __init__(self, after):
        self.after = after

    def on_train_epoch_end(self, *trainer_and_module):
        self.after(nets.reconstruct(trainer_and_module[-1]))


def fit(X, net, epochs, batch, rate, after=None, **_):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    model = ENCDR(
        hidden_dims=list(net[1:-1]),
        latent_dim=net[-1],
        batch_size=batch,
        learning_rate=rate,
        max_epochs=epochs,
        validation_split=0.0,
        standardize=False,
        trainer_kwargs=quiet | ({"callbacks": [Watch(after)]} if after else {}),
    )
    torch.manual_seed(0)
    return nets.reconstruct(model.fit(X).model_)
