"""The encoder's matrix product alone, once a step: torch.mm with out=, preallocated, float32."""

import torch

PACKAGES = ("torch",)
CODES = dict.fromkeys(("TopK", "BatchTopK", "JumpReLU", "L1"), ())
CANNOT = {"train": "it learns nothing", "memory": "not a library"}


class Fit:
    def __init__(self, asked, x):
        kind = torch.bfloat16 if asked.precision == "bfloat16" else torch.float32
        self.W = torch.randn(x.shape[1], asked.K).to(kind)
        self.a, self.x = torch.empty(len(x), asked.K, dtype=kind), x.to(kind)

    def step(self, x):
        torch.mm(self.x if self.x.dtype != x.dtype else x, self.W, out=self.a)
