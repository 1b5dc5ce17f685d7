"""retell: the settings of Autoencoder, the steps of its solver, and whole fits."""

import hashlib
import time
from pathlib import Path

import torch

import retell
from retell import Autoencoder
from retell.settings import Settings
from retell.turning import AS_THEY_ARE

PACKAGES = ("retell", "torch", "numpy")
CODES = {
    "TopK": (8, 16, 32, 64),
    "BatchTopK": (7, 8, 14, 16, 32, 64),  # rows of the test file have more active units than those fitted to
    "Matryoshka": (8,),
    "L1": (0.003, 0.006, 0.012, 0.025, 0.05),
    "JumpReLU": (0.0003, 0.0006, 0.0012, 0.0025, 0.005),
}
DIAL = "target_l0" in Settings.__dataclass_fields__
if DIAL:  # the amount of every code is then the L0 asked for
    CODES |= {"L1": (8, 16, 32, 64), "JumpReLU": (8, 16, 32, 64)}
NOTE = "L1 and JumpReLU by target_l0" if DIAL else "no target_l0 yet: coefficients"


def source():
    """Says whether results are of the sources as they are now."""
    digest = hashlib.sha256()
    for file in sorted(Path(retell.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


SOURCE = source()


def settings(asked):
    """Parameters of Autoencoder."""
    code, amount, K = asked.code, asked.amount, asked.K
    if code == "Matryoshka":
        nested = f"Nested(MSE(), ({K // 16}, {K // 4}, {K // 2}))"
        return {"code_activation": f"BatchTopK({int(amount)})", "objective": nested}
    if code in ("TopK", "BatchTopK"):
        return {"code_activation": f"{code}({int(amount)})"}
    activation, penalty = {"L1": ("ReLU()", "L1()"), "JumpReLU": ("JumpReLU()", "L0()")}[code]
    if DIAL:
        return {"code_activation": activation, "objective": f"MSE() + 0.01 * {penalty}", "target_l0": amount}
    return {"code_activation": activation, "objective": f"MSE() + {amount} * {penalty}"}


def begin(asked, rows, **more):
    """A fit before its first step: the model and its training."""
    given = {"batch_size": 4096, "random_state": asked.seed, **settings(asked), **more}
    model = Autoencoder(asked.K, **given)
    return model, model._begin(*model._settings(), rows, None)


class Fit:
    """The steps alone, as a fit takes them; `x` are batches one after the other."""

    def __init__(self, asked, x):
        _, self.training = begin(asked, x.numpy(), max_iter=7, early_stopping=False)
        self.rows = self.training.plan.rows()
        self.descent = self.training.descent

    def epoch(self):
        """A step for each 4,096 of the rows."""
        self.descent.one_epoch(self.rows)

    def numbers(self):
        return sum(p.numel() for p in self.training.plan.codec.parameters())


class Trained:
    """What a whole fit has learned, in the rows' own units."""

    def __init__(self, codec, scaling, turning=AS_THEY_ARE):
        self.codec, self.turning = codec, turning
        self.shift, self.factor = (torch.from_numpy(some).float() for some in (scaling.shift, scaling.factor))

    @classmethod
    def by(cls, training):
        """A training as it stands."""
        return cls(training.plan.codec, training.plan.survey.scaling, training.plan.survey.turning)

    def encode(self, x):
        return self.codec(self.turning.turn_(((x - self.shift) / self.factor).to(self.codec.centre))).h

    def decode(self, h):
        return self.turning.back.turn_(self.codec.decode(h).float()) * self.factor + self.shift

    def dictionary(self):
        return self.turning.back.turn_(self.codec.dictionary().detach().T.clone()) * self.factor


def train(asked, rows, epochs, after, **more):
    """A fit of so many epochs with nothing else set but `more`; `after(number, trained)` follows each."""
    rate = {} if asked.rate is None else {"learning_rate_init": asked.rate}
    _, training = begin(asked, rows.numpy(), max_iter=epochs, **rate, **more)
    for number, _ in enumerate(training.epochs(), 1):
        after(number, Trained.by(training))
    return Trained.by(training)


def dialled(asked, rows, word, target, epochs):
    """A fit that is asked for an L0 or an FVU."""
    if word not in Settings.__dataclass_fields__:
        raise NotImplementedError(f"Autoencoder has no {word}")
    given = settings(asked)
    given.pop("target_l0", None)
    more = {"batch_size": 4096, "max_iter": epochs, "random_state": asked.seed, word: target}
    model = Autoencoder(asked.K, **given, **more)
    training = model._begin(*model._settings(), rows.numpy(), None)
    for _ in training.epochs():
        pass
    return Trained.by(training)


def seconds_a_row(asked, x, batch):
    """Of the steps of a fit to rows in memory."""
    _, training = begin(asked, x, max_iter=2, batch_size=batch, early_stopping=False)
    rows = training.plan.rows()[:]
    training.descent.one_epoch(rows)
    start = time.perf_counter()
    training.descent.one_epoch(rows)
    return (time.perf_counter() - start) / len(x)


def streamed(asked, blocks, n_rows, batch):
    """A fit to rows that come in blocks, each seen once, and its seconds."""
    rate = {} if asked.rate is None else {"learning_rate_init": asked.rate}
    model = Autoencoder(asked.K, batch_size=batch, random_state=asked.seed, **rate, **settings(asked))
    start = time.perf_counter()
    model.fit_stream(blocks, n_rows=n_rows)
    seconds = time.perf_counter() - start
    return Trained(model.codec_, model.scaling_), seconds
