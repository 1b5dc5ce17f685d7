"""The matrix products alone: torch.mm with out=, preallocated, float32; or NumPy's, on one thread.

An epoch is what a training step multiplies, for every batch: the layers' outputs, the gradients of their inputs (not
of the first's) and of their weights. No bias, no activation, no update, and rows in the order they have.
"""

from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import torch
from threadpoolctl import threadpool_limits

PACKAGES = ("torch",)
CANNOT = {"until": "it learns nothing", "row": "not a library"}


class Step:
    """The products of one step over `batch` rows."""

    def __init__(self, widths, batch, numpy):
        self.multiply = np.matmul if numpy else torch.mm
        whole = [torch.randn(n, m) / n**0.5 for n, m in pairwise(widths)]
        memory = [whole, [torch.empty_like(w) for w in whole]]
        memory += [[torch.randn(batch, m) for m in widths[1:]] for _ in range(2)]
        self.w, self.dw, self.h, self.dh = [[t.numpy() if numpy else t for t in some] for some in memory]

    def __call__(self, x):
        inputs = [x, *self.h]
        for w, h, y in zip(self.w, inputs, self.h, strict=False):
            self.multiply(h, w, out=y)
        for i in reversed(range(len(self.w))):
            self.multiply(inputs[i].T, self.dh[i], out=self.dw[i])
            if i:
                self.multiply(self.dh[i], self.w[i].T, out=self.dh[i - 1])


def fit(X, net, epochs, batch, numpy=False, **_):
    widths = (*net, *net[-2::-1])
    batches = torch.from_numpy(X).split(batch)
    steps = {n: Step(widths, n, numpy) for n in {batch, len(X) % batch} if n}
    batches = [rows.numpy() for rows in batches] if numpy else batches
    with threadpool_limits(1, user_api="blas") if numpy else nullcontext():
        for _ in range(epochs):
            for rows in batches:
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
