"""What everybody writes: DataLoader(TensorDataset), Adam, loss.item(); and torch's net as it stands for `transform`."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from . import nets

PACKAGES = ("torch",)


def fit(X, net, epochs, batch, rate, after=None, code="relu"):
    torch.manual_seed(0)
    model = nn.Sequential(*nets.halves(net, code))
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    loss = nn.MSELoss()
    loader = DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=batch, shuffle=True)
    for _ in range(epochs):
        total = 0.0
        for (x,) in loader:
            optimiser.zero_grad()
            error = loss(model(x), x)
            error.backward()
            optimiser.step()
            total += error.item()
        if after:
            after(nets.reconstruct(model))
    return nets.reconstruct(model)


def encoders(net, **_):
    encoder = nets.halves(net)[0].eval()
    whole = nets.reconstruct(encoder)

    def blocks(X):
        with torch.no_grad():
            return torch.cat([encoder(x) for x in torch.from_numpy(X).split(8192)]).numpy()

    return {"whole": whole, "blocks of 8192": blocks}
