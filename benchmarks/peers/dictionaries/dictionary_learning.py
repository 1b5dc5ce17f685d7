"""dictionary_learning, by its trainers' `update` on tensors."""

import torch

from .stubs import stub

stub("nnsight")

from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer  # noqa: E402
from dictionary_learning.trainers.jumprelu import JumpReluTrainer  # noqa: E402
from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate  # noqa: E402
from dictionary_learning.trainers.top_k import TopKTrainer  # noqa: E402

PACKAGES = ("dictionary-learning", "torch")
CODES = {
    "TopK": (8, 16, 32, 64),
    "BatchTopK": (8, 16, 32, 64),
    "L1": (0.5, 1, 2, 4, 8),
    "JumpReLU": (8, 16, 32, 64),
}
NOTE = "JumpReLU's amount is its target_l0; the threshold of BatchTopK starts after 5 % of the steps and follows at 0.1"
TRAINERS = {
    "TopK": TopKTrainer,
    "BatchTopK": BatchTopKTrainer,
    "L1": StandardTrainerAprilUpdate,
    "JumpReLU": JumpReluTrainer,
}


def own(asked):
    """The settings of the code."""
    if asked.code == "L1":
        return {"l1_penalty": asked.amount, "sparsity_warmup_steps": asked.rise}
    if asked.code == "JumpReLU":
        return {"target_l0": asked.amount, "sparsity_warmup_steps": asked.rise}
    threshold = {"threshold_start_step": asked.rise, "threshold_beta": 0.9} if asked.code == "BatchTopK" else {}
    return {"k": int(asked.amount), **threshold}


class Fit:
    def __init__(self, asked, x):
        torch.manual_seed(asked.seed)
        self.asked, self.taken = asked, 0
        self.trainer = TRAINERS[asked.code](
            steps=asked.steps,
            activation_dim=x.shape[1],
            dict_size=asked.K,
            layer=0,
            lm_name="",
            lr=asked.rate,
            warmup_steps=asked.rise,
            decay_start=asked.steps - asked.fall,
            seed=asked.seed,
            device="cpu",
            **own(asked),
        )
        self.ae = self.trainer.ae

    def step(self, x):
        with self.asked.mixed():
            self.trainer.update(self.taken, x)
        self.taken += 1

    def encode(self, x):
        return self.ae.encode(x)

    def decode(self, h):
        return self.ae.decode(h)

    def dictionary(self):
        return self.ae.W_dec if hasattr(self.ae, "W_dec") else self.ae.decoder.weight.T

    def numbers(self):
        return sum(p.numel() for p in self.ae.parameters())
