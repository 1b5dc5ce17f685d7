"""sparsify: SparseCoder and Adam, in the order of calls of its Trainer, which wants a language model."""

import torch
from sparsify import SparseCoder, SparseCoderConfig
from transformers import get_linear_schedule_with_warmup

PACKAGES = ("eai-sparsify", "torch")
CODES = {"TopK": (8, 16, 32, 64)}
CANNOT = dict.fromkeys(("BatchTopK", "JumpReLU", "L1"), "it has TopK alone")
NOTE = "its rate falls from the first 5 % on, as its Trainer has it"


class Fit:
    def __init__(self, asked, x):
        torch.manual_seed(asked.seed)
        self.asked = asked
        self.coder = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=asked.K, k=int(asked.amount)))
        self.coder.b_dec.data = x.mean(0)
        self.optimiser = torch.optim.Adam(self.coder.parameters(), lr=asked.rate)
        self.schedule = get_linear_schedule_with_warmup(self.optimiser, asked.rise, asked.steps)

    def step(self, x):
        self.coder.set_decoder_norm_to_unit_norm()
        with self.asked.mixed():
            self.coder(x).fvu.backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.schedule.step()

    def encode(self, x):
        found = self.coder.encode(x)
        return torch.zeros_like(found.pre_acts).scatter_(1, found.top_indices, found.top_acts)

    def decode(self, h):
        return h @ self.coder.W_dec + self.coder.b_dec

    def dictionary(self):
        return self.coder.W_dec

    def numbers(self):
        return sum(p.numel() for p in self.coder.parameters())
