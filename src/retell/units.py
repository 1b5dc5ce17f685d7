"""Findings about the units of a code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csc_array, issparse

from retell.activations import ReLU, Sample
from retell.densities import Exponential, Laplace
from retell.evidence import Evidence
from retell.findings import Finding, percent
from retell.penalties import KL, L1, Prior, StudentT, ToNormal
from retell.recovery import twins

__all__ = ["LOOKS"]

Array = npt.NDArray[Any]

MANY = 0.05  # share of the units above which they are worth a word
ALIKE = 0.99  # cosine or correlation from which two units are one
OFTEN = 10  # rows in which a unit must be active before its correlations mean anything
FEW = 0.1  # share of the units that a row of a sparse code has at most, on average
DENSE, HEAVY = 0.5, 0.2  # share of the rows where a unit is on that is no feature, and of the activity worth a word
FAINT = 0.01  # nats: a unit whose divergence is less tells nothing


def _small(e: Evidence) -> Finding | None:
    """A term of the objective asks for zeros, and less than 1 % of the codes' entries are zero."""
    asking = [term for term in e.penalties if _sparsifies(term)]
    zeros = 1 - float(e.active.mean()) / len(e.x)
    if not asking or zeros >= 0.01:
        return None
    kinked = [t for t in asking if isinstance(t, L1) or (isinstance(t, Prior) and not isinstance(t.p, StudentT))]
    if kinked and (e.model.inference == "map" or isinstance(e.squash, ReLU)):
        remedy = f"a larger coefficient for {kinked[0]!r}, or code_activation='TopK(8)'"
    elif kinked:
        remedy = "a code that can be 0: code_activation='ReLU()' or 'TopK(8)', or inference='map'"
    else:
        remedy = "code_activation='TopK(8)', or L1() with code_activation='ReLU()' or inference='map'"
    return Finding(
        "small codes",
        {"zeros": zeros},
        f"{' and '.join(map(repr, asking))} asks for a sparse code, but only {percent(zeros)} of its entries are"
        " exactly 0: it is small, not sparse",
        remedy,
    )


def _sparsifies(term: Any) -> bool:
    prior = isinstance(term, Prior) and term.on == "code" and isinstance(term.p, Laplace | Exponential | StudentT)
    return prior or isinstance(term, L1 | StudentT)


def _dead(e: Evidence) -> Finding | None:
    """More than 5 % of the units do not vary over the rows."""
    share = float(1 - e.alive.mean())
    if share <= MANY:
        return None
    revive = "AuxK() in the objective, or " if e.squash.sparse else ""
    return Finding(
        "dead units",
        {"share": share},
        f"{percent(share)} of the units are the same, mostly 0, for all of these {len(e.x):,} rows",
        f"{revive}fewer units (n_components), a smaller penalty, or a smaller learning_rate_init",
    )


def _dense(e: Evidence) -> Finding | None:
    """A sparse code was asked for, and units that are active in more than half of the rows make 20 % of its activity.

    Not where a row has a tenth of the units or more.
    """
    rate = e.active / len(e.x)
    l0 = float(rate.sum())
    if not (e.squash.sparse or any(map(_sparsifies, e.penalties))) or not 0 < l0 < FEW * len(rate):
        return None
    dense = rate > DENSE
    part = float(rate[dense].sum() / l0)
    if part <= HEAVY:
        return None
    return Finding(
        "dense units",
        {"units": float(dense.sum()), "part": part},
        f"{dense.sum():,} of the {len(rate):,} units are active in more than half of the rows, and make up"
        f" {percent(part)} of all activity: what nearly all rows have in common leaves less room for what tells them"
        " apart",
        "see that the rows are centred and none is massive (retell.inspect), that is, keep the default scale; then a"
        " larger coefficient of the penalty, or fewer active units",
    )


def _duplicate(e: Evidence) -> Finding | None:
    """More than 5 % of the live units have a twin.

    Two columns of the decoder are twins at |cos| > 0.99, for a code that can't be negative at cos > 0.99 (there
    v and -v are two features), two codes at a correlation beyond ±0.99; of more than 1,024 units, two that are ever
    active together.
    """
    alive = np.flatnonzero(e.alive & (e.active >= OFTEN))
    h = e.h[:, alive]
    twin = _together(h) if issparse(h) else twins((h - h.mean(0)).T, ALIKE, signed=True) >= 0
    dictionary = e.model.codec_.dictionary()
    if dictionary is not None and not e.model.codec_.decoder.deep:
        columns = dictionary.detach().cpu().numpy()[:, alive]
        twin |= twins(columns.T, ALIKE, signed=e.squash.range != (0.0, math.inf)) >= 0
    share = float(twin.mean()) if len(twin) else 0.0
    if share <= MANY:
        return None
    return Finding(
        "duplicate units",
        {"share": share},
        f"{percent(share)} of the live units say what another one says",
        "fewer units (n_components), or a sparse code ('TopK(8)') that makes units compete",
    )


def _together(h: csc_array) -> Array:
    """Which units (K,) have a correlation beyond ±0.99 with another that is active in one of their rows."""
    mean = np.asarray(h.mean(axis=0)).ravel()
    both = (h.T @ h).tocoo()
    i, j = both.coords
    variance = np.maximum(both.diagonal() / h.shape[0] - mean**2, np.finfo(float).tiny)
    correlation = (both.data / h.shape[0] - mean[i] * mean[j]) / np.sqrt(variance[i] * variance[j])
    twin = np.zeros(h.shape[1], dtype=bool)
    twin[i[(i != j) & (np.abs(correlation) > ALIKE)]] = True
    return twin


def _saturated(e: Evidence) -> Finding | None:
    """More than 5 % of the units lie within 1 % of a bound of their range in more than 95 % of the rows.

    Not where KL is a term: it asks for units that are mostly off.
    """
    low, high = e.squash.range
    if not math.isfinite(high - low) or any(isinstance(term, KL) for term in e.penalties):
        return None
    h = e.h.toarray() if issparse(e.h) else e.h
    at = (h - low) / (high - low)
    share = float((((at < 0.01) | (at > 0.99)).mean(0) > 0.95).mean())
    if share <= MANY:
        return None
    return Finding(
        "saturated units",
        {"share": share},
        f"{percent(share)} of the units stick to a bound of {e.squash!r}, where they learn nothing more",
        "scale='standard', a smaller learning_rate_init, L2() in the objective, or code_activation='Identity()'",
    )


def _collapsed(e: Evidence) -> Finding | None:
    """More than 5 % of the units of a drawn code have a mean KL(N(m, s²) || N(0, 1)) below 0.01 nats."""
    codec = e.model.codec_
    if not isinstance(codec.code_activation, Sample):
        return None
    with torch.no_grad():
        p = codec(torch.from_numpy(np.ascontiguousarray(e.x)).to(codec.centre))
        nats = ToNormal().by_unit(p).mean(0)
    share = float((nats < FAINT).double().mean())
    if share <= MANY:
        return None
    return Finding(
        "collapsed units",
        {"share": share, "least": float(nats.min())},
        f"{percent(share)} of the units are drawn from N(0, 1) whatever the row is, and tell nothing of it",
        "a coefficient of ToNormal() that is smaller, or grows (Warmup(1.0, 1000) * ToNormal()); or fewer units: those"
        " that tell nothing do no harm",
    )


LOOKS = (_small, _dead, _dense, _duplicate, _saturated, _collapsed)
