"""The matrix products alone: torch.mm with out=, preallocated, float32.

An epoch is what a training step multiplies, for every batch: the layers' outputs, the gradients of their inputs (not
of the first's) and of their weights. No bias, no activation, no update, and rows in the order they have.
"""

from itertools import pairwise

import torch

PACKAGES = ("torch",)
CANNOT = {"until": "it learns nothing", "row": "not a library"}


class Step:
    """The products of one step over `batch` rows."""

    def __init__(self, widths, batch):
        self.w = [torch.randn(n, m) / n**0.5 for n, m in pairwise(widths)]
        self.dw = [torch.empty_like(w) for w in self.w]
        self.h = [torch.empty(batch, m) for m in widths[1:]]
        self.dh = [torch.randn(batch, m) for m in widths[1:]]

    def __call__(self, x):
        inputs = [x, *self.h]
        for w, h, y in zip(self.w, inputs, self.h, strict=False):
            torch.mm(h, w, out=y)
        for i in reversed(range(len(self.w))):
            torch.mm(inputs[i].t(), self.dh[i], out=self.dw[i])
            if i:
                torch.mm(self.dh[i], self.w[i].t(), out=self.dh[i - 1])


def fit(X, net, epochs, batch, **_):
    widths = (*net, *net[-2::-1])
    x = torch.from_numpy(X)
    steps = {n: Step(widths, n) for n in {batch, len(x) % batch} if n}
    for _ in range(epochs):
        for rows in x.split(batch):
            steps[len(rows)](rows)


def encoders(net, X):
    code = torch.empty(len(X), net[-1])
    ways = {}
    for size in (256, 1024, 4096, 16384, 65536, len(X)):
        for stored in ("in x out", "out x in"):
            weights = [torch.randn(n, m) / n**0.5 for n, m in pairwise(net)]
            if stored == "out x in":
                weights = [w.t().contiguous().t() for w in weights]
            ways[f"blocks of {size}, weights {stored}"] = Products(weights, code, size)
    return ways


class Products:
    """The encoder's products over blocks of rows, into memory that is there."""

    def __init__(self, weights, code, size):
        self.weights, self.code, self.size = weights, code, size
        self.hidden = [torch.empty(size, w.shape[1]) for w in weights[:-1]]

    def __call__(self, X):
        x = torch.from_numpy(X)
        for start in range(0, len(x), self.size):
            h = x[start : start + self.size]
            for w, y in zip(self.weights, [*self.hidden, self.code[start : start + len(h)]], strict=True):
                h = torch.mm(h, w, out=y[: len(h)])
        return self.code[: len(x)].numpy()
