"""pyautoencoder's AE, which brings no trainer, in the loop of plain.py."""

import torch
from pyautoencoder.vanilla import AE
from torch.utils.data import DataLoader, TensorDataset

from . import nets

PACKAGES = ("pyautoencoder",)
NOTE = "brings no trainer: in plain's loop, with its own loss (a sum over columns)"
CANNOT = {"encoders": "the encoder is the module it was given: see plain"}


def fit(X, net, epochs, batch, rate, after=None, code="relu"):
    torch.manual_seed(0)
    model = AE(*nets.halves(net, code))
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    loader = DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=batch, shuffle=True)
    reconstruct = nets.reconstruct(lambda x: model(x).x_hat)
    for _ in range(epochs):
        for (x,) in loader:
            optimiser.zero_grad()
            model.compute_loss(x, model(x)).objective.backward()
            optimiser.step()
        if after:
            after(reconstruct)
    return reconstruct
