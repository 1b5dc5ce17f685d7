"""The same fit on another device."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from retell import Autoencoder, load

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("corruption", ["Nothing()", "Mask(0.3)"])
def test_a_fit_on_cuda_is_as_good_as_on_the_cpu(corruption, tmp_path):
    X = load_digits().data
    scores = {}
    for device in ("cpu", "cuda"):
        model = Autoencoder(8, corruption=corruption, device=device, random_state=0, max_iter=20).fit(X)
        scores[device] = model.score(X)
        model.save(tmp_path / device)
        np.testing.assert_array_equal(load(tmp_path / device).transform(X), model.transform(X))
    assert scores["cuda"] == pytest.approx(scores["cpu"], abs=0.01)


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="'cuda:77' can't be used here"):
        Autoencoder(device="cuda:77").fit(load_digits().data[:50])
