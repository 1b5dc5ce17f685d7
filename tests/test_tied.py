"""Tied weights: one storage, so its gradient is the sum of the encoder's and the decoder's."""

import copy

import pytest
import torch

from retell import L1, MSE, Codec, Contractive, Identity, Sigmoid, mirror, mlp

D, K = 5, 3
OBJECTIVE = MSE() + 0.3 * Contractive() + 0.1 * L1()


def make(hidden, linear_path, squash):
    """A tied codec and its untied twin with the same numbers in its matrices."""
    draw = torch.Generator().manual_seed(len(hidden))
    encoder = mlp([D, *hidden, K], "tanh", linear_path=linear_path)
    tied = Codec(encoder, squash, mirror(encoder, tied=True), torch.zeros(D)).double()
    with torch.no_grad():
        for parameter in tied.parameters():
            parameter.normal_(generator=draw).mul_(0.7)
    untied = copy.deepcopy(tied)
    untied.decoder = mirror(untied.encoder, tied=False).double()
    with torch.no_grad():
        for ours, theirs in zip(untied.decoder.affines(), tied.decoder.affines(), strict=True):
            ours.own.copy_(theirs.weight)
            if ours.bias is not None:
                ours.bias.copy_(theirs.bias)
    return tied, untied, torch.randn(20, D, dtype=torch.float64, generator=draw)


def loss(codec, x):
    return torch.stack(list(OBJECTIVE(codec(x)).values())).sum()


CASES = pytest.mark.parametrize(
    ("hidden", "linear_path", "squash"),
    [((), False, Identity()), ((), False, Sigmoid()), ((6, 4), False, Sigmoid()), ((6, 4), True, Identity())],
    ids=["one layer", "one layer, sigmoid code", "three layers", "three layers and a linear path"],
)


@CASES
def test_tied_gradient_is_the_sum_of_both(hidden, linear_path, squash):
    tied, untied, x = make(hidden, linear_path, squash)
    one, other = loss(tied, x), loss(untied, x)
    torch.testing.assert_close(one, other, rtol=1e-14, atol=0)
    one.backward()
    other.backward()
    encoder, decoder = untied.encoder, untied.decoder
    pairs = list(zip(tied.encoder.layers, encoder.layers, reversed(decoder.layers), strict=True))
    pairs += [(tied.encoder.linear, encoder.linear, decoder.linear)] if linear_path else []
    assert len(pairs) == len(hidden) + 1 + linear_path
    for shared, up, down in pairs:
        torch.testing.assert_close(shared.own.grad, up.own.grad + down.own.grad.T, rtol=0, atol=1e-10)
        assert up.own.grad.abs().max() > 1e-3  # both halves have a say
        assert down.own.grad.abs().max() > 1e-3
    for ours, theirs in zip(tied.affines(), untied.affines(), strict=True):
        if ours.bias is not None:
            torch.testing.assert_close(ours.bias.grad, theirs.bias.grad, rtol=0, atol=1e-10)


@CASES
def test_tied_gradient_is_the_finite_difference(hidden, linear_path, squash):
    tied, _, x = make(hidden, linear_path, squash)
    loss(tied, x).backward()
    step = 1e-5
    for parameter in tied.parameters():
        for i in range(parameter.numel()):
            with torch.no_grad():
                flat, ends = parameter.view(-1), []
                for sign in (1, -2, 1):  # up, down, back
                    flat[i] += sign * step
                    ends.append(float(loss(tied, x)))
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(parameter.grad.view(-1)[i]), abs=1e-8)


def test_a_tied_matrix_is_stored_and_counted_once():
    tied, untied, _ = make((6, 4), True, Identity())
    assert len(tied.matrices()) == 4
    assert len(untied.matrices()) == 8
    assert tied.tied
    assert not untied.tied
    for up, down in zip(tied.encoder.layers, reversed(tied.decoder.layers), strict=True):
        assert up.weight.data_ptr() == down.weight.data_ptr()
    assert tied.dictionary().data_ptr() == tied.encoder.linear.own.data_ptr()


def test_a_copy_of_a_tied_codec_is_tied_to_itself():
    tied, _, x = make((6, 4), True, Identity())
    twin = copy.deepcopy(tied)
    with torch.no_grad():
        for parameter in tied.parameters():
            parameter.zero_()
    assert twin(x).x_hat.abs().sum() > 0
    assert twin.encoder.layers[0].own.data_ptr() == twin.decoder.layers[-1].weight.data_ptr()
