"""What everybody writes: autograd, Adam, the gradient's norm clipped at 1, unit rows of the decoder after each step."""

import torch
from torch import nn

PACKAGES = ("torch",)
CODES = {"TopK": (8, 16, 32, 64), "L1": (0.5, 1, 2, 4, 8)}
CANNOT = dict.fromkeys(("BatchTopK", "JumpReLU"), "not written")


class Fit:
    def __init__(self, asked, x):
        generator = torch.Generator().manual_seed(asked.seed)
        self.asked, self.taken = asked, 0
        V = torch.randn(asked.K, x.shape[1], generator=generator)
        self.V = nn.Parameter(V / V.norm(dim=1, keepdim=True))
        self.W = nn.Parameter(self.V.detach().clone())
        self.b, self.c = nn.Parameter(torch.zeros(asked.K)), nn.Parameter(x.mean(0))
        self.learned = [self.W, self.b, self.V, self.c]
        self.optimiser = torch.optim.Adam(self.learned, lr=asked.rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, asked.share)

    def step(self, x):
        with self.asked.mixed():
            h = self.encode(x)
            loss = (x - self.decode(h)).square().sum(1).mean()
        if self.asked.code == "L1":
            loss = loss + self.asked.amount * min(1.0, self.taken / self.asked.rise) * h.sum(1).mean()
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.learned, 1.0)
        self.optimiser.step()
        self.schedule.step()
        with torch.no_grad():
            self.V /= self.V.norm(dim=1, keepdim=True)
        self.taken += 1

    def encode(self, x):
        a = (x - self.c) @ self.W.T + self.b
        if self.asked.code == "L1":
            return torch.relu(a)
        values, numbers = a.topk(int(self.asked.amount), dim=1)
        return torch.zeros_like(a).scatter(1, numbers, torch.relu(values))

    def decode(self, h):
        return h @ self.V + self.c

    def dictionary(self):
        return self.V

    def numbers(self):
        return sum(p.numel() for p in self.learned)
