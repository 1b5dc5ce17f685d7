"""pythae's AE with its trainer; the net is given as modules."""

import logging
import tempfile

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import AE, AEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback

from . import nets

PACKAGES = ("pythae",)
NOTE = "fits the sum over columns, not the mean; writes the model to disk after a fit"
CANNOT = {"encoders": "the encoder is the module it was given: see plain"}
USUAL = {"batch": 64, "rate": 1e-4}
logging.disable(logging.INFO)


class Encoder(BaseEncoder):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return ModelOutput(embedding=self.layers(x))


class Decoder(BaseDecoder):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, z):
        return ModelOutput(reconstruction=self.layers(z))


class Watch(TrainingCallback):
    def __init__(self, after, reconstruct):
        self.after, self.reconstruct = after, reconstruct

    def on_epoch_end(self, *_, **__):
        self.after(self.reconstruct)


def fit(X, net, epochs, batch, rate, after=None, code="relu"):
    torch.manual_seed(0)
    encoder, decoder = nets.halves(net, code)
    model = AE(AEConfig(input_dim=(net[0],), latent_dim=net[-1]), Encoder(encoder), Decoder(decoder))
    reconstruct = nets.reconstruct(torch.nn.Sequential(encoder, decoder))
    with tempfile.TemporaryDirectory() as folder:
        BaseTrainer(
            model,
            BaseDataset(torch.from_numpy(X), torch.zeros(len(X))),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                num_epochs=epochs,
                per_device_train_batch_size=batch,
                learning_rate=rate,
                no_cuda=True,
                seed=0,
            ),
            callbacks=[Watch(after, reconstruct)] if after else None,
        ).train()
    return reconstruct
