"""overcomplete, by `train_sae` on one batch at a time. Without a bias of its own it gets rows less the first's mean."""

import torch

from .stubs import stub

stub("torchvision", "timm", "cv2", "skimage")

from overcomplete.sae import BatchTopKSAE, TopKSAE, train_sae  # noqa: E402

PACKAGES = ("overcomplete", "torch")
CODES = {"TopK": (8, 16, 32, 64), "BatchTopK": (8, 16, 32, 64)}
CANNOT = {"JumpReLU": "not run: its loss has no coefficient for L0", "L1": "not run: its loss has no warm-up"}
NOTE = "mean squared error alone, its statistics included in a step"


def error(x, x_hat, *_):
    return (x - x_hat).square().mean()


class Fit:
    def __init__(self, asked, x):
        torch.manual_seed(asked.seed)
        self.asked, self.mean = asked, x.mean(0)
        kind, kept = (TopKSAE, 1) if asked.code == "TopK" else (BatchTopKSAE, len(x))
        self.sae = kind(x.shape[1], asked.K, top_k=int(asked.amount) * kept)
        self.optimiser = torch.optim.Adam(self.sae.parameters(), lr=asked.rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, asked.share)

    def step(self, x):
        if not self.sae.training:
            self.sae.train()
        with self.asked.mixed():
            train_sae(self.sae, [x - self.mean], error, self.optimiser, self.schedule, nb_epochs=1)

    def encode(self, x):
        self.sae.eval()
        return self.sae.encode(x - self.mean)[1]

    def decode(self, h):
        return self.sae.decode(h) + self.mean

    def dictionary(self):
        return self.sae.get_dictionary()

    def numbers(self):
        return sum(p.numel() for p in self.sae.parameters())
