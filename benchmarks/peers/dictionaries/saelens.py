"""SAELens, by SAETrainer.step on tensors; the decoder's bias starts at the first batch's mean."""

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

PACKAGES = ("sae-lens", "torch")
CODES = {
    "TopK": (8, 16, 32, 64),
    "BatchTopK": (8, 16, 32, 64),
    "Matryoshka": (8,),
    "L1": (0.5, 1, 2, 4, 8),
    "JumpReLU": (0.5, 1, 2, 4, 8),
}
NOTE = "JumpReLU by its tanh penalty with gradients to the encoder; the threshold of BatchTopK follows at 0.1 a step"
KINDS = {
    "TopK": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "BatchTopK": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "Matryoshka": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig),
    "L1": (StandardTrainingSAE, StandardTrainingSAEConfig),
    "JumpReLU": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
}


def own(asked):
    """The settings of the code."""
    if asked.code == "TopK":
        return {"k": int(asked.amount)}
    if asked.code == "BatchTopK":
        return {"k": asked.amount, "topk_threshold_lr": 0.1}
    if asked.code == "Matryoshka":
        widths = [asked.K // 16, asked.K // 4, asked.K // 2, asked.K]
        return {"k": asked.amount, "topk_threshold_lr": 0.1, "matryoshka_widths": widths}
    if asked.code == "L1":
        return {"l1_coefficient": asked.amount, "l1_warm_up_steps": asked.rise}
    return {
        "l0_coefficient": asked.amount,
        "l0_warm_up_steps": asked.rise,
        "jumprelu_sparsity_loss_mode": "tanh",
        "jumprelu_ste_to_input": True,
        "jumprelu_init_threshold": 0.1,
        "jumprelu_bandwidth": 2.0,
        "pre_act_loss_coefficient": 3e-6,
    }


class Fit:
    def __init__(self, asked, x):
        torch.manual_seed(asked.seed)
        kind, config = KINDS[asked.code]
        self.sae = kind(config(d_in=x.shape[1], d_sae=asked.K, **own(asked)))
        self.sae.b_dec.data = x.mean(0)
        config = SAETrainerConfig(
            total_training_samples=asked.steps * len(x),
            train_batch_size_samples=len(x),
            lr=asked.rate,
            lr_end=asked.rate,
            lr_warm_up_steps=asked.rise,
            lr_decay_steps=asked.fall,
            autocast=asked.precision == "bfloat16",
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.trainer = SAETrainer(config, self.sae, iter(()))

    def step(self, x):
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def encode(self, x):
        """As the model that it saves for use codes."""
        sae = self.sae
        if not hasattr(sae, "topk_threshold"):
            return sae.encode(x)
        size = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        size = size * sae.W_dec.norm(dim=1) if sae.cfg.rescale_acts_by_decoder_norm else size
        return torch.relu(size) * (size > sae.topk_threshold)

    def decode(self, h):
        return self.sae.decode(h)

    def dictionary(self):
        return self.sae.W_dec

    def numbers(self):
        return sum(p.numel() for p in self.sae.parameters())
