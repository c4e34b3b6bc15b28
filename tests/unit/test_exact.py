"""Arithmetic in a fixed order: right, and the same bit for bit whatever is computed beside it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from parsimony.models import exact


def test_the_sine_is_the_sine():
    x = np.concatenate((np.random.default_rng(0).normal(0, 1e3, 100_000), np.pi * np.arange(-50, 50), [0.0, 1e5]))
    assert np.abs(exact.sine(x) - np.sin(x)).max() < 1e-15
    assert exact.sine(np.zeros(3)).tolist() == [0, 0, 0]


def test_products_and_convolutions_are_those_of_torch():
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(3, 7, 5)), rng.normal(size=(3, 5, 4)), rng.normal(size=(3, 4))
    np.testing.assert_allclose(exact.affine(x, w, b), x @ w + b[:, None], rtol=1e-12)
    x, w, b = rng.normal(size=(2, 3, 6, 5)), rng.normal(size=(4, 3, 5, 5)), rng.normal(size=4)
    expected = F.conv2d(*map(torch.from_numpy, (x, w, b)), padding=2)
    np.testing.assert_allclose(exact.convolve(x, w, b), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("taken", [slice(0, 1), slice(3, 8), slice(5, 6)])
def test_what_else_is_in_the_batch_does_not_matter(taken):
    rng = np.random.default_rng(1)
    x, layers = rng.normal(size=(9, 33, 4)), []
    for inputs, outputs in ((4, 6), (6, 3)):
        layers.append((rng.normal(size=(9, inputs, outputs)), rng.normal(size=(9, outputs))))
    whole = exact.sine_network(x, layers, 30.0)
    part = exact.sine_network(x[taken], [(w[taken], b[taken]) for w, b in layers], 30.0)
    assert (whole[taken] == part).all()
    images, kernel, bias = rng.normal(size=(9, 2, 7, 7)), rng.normal(size=(3, 2, 3, 3)), np.ones(3)
    assert (exact.convolve(images, kernel, bias)[taken] == exact.convolve(images[taken], kernel, bias)).all()


def test_pixels_are_clipped_and_rounded():
    assert exact.pixels(np.array([-3, 0, 0.4 / 255, 0.6 / 255, 1, 1.5])).tolist() == [0, 0, 0, 1, 255, 255]
