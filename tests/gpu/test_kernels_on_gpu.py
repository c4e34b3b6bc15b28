"""Kernels on a GPU, compiled: irregular shapes in every type, and the shapes that `gpu-check` times."""

import importlib

import pytest
import torch

from parsimony.kernels import bench
from parsimony.kernels.common import NAMES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("name", NAMES)
def test_parity_on_irregular_shapes(name):
    found = bench.checked(importlib.import_module(f"parsimony.kernels.{name}"), "cuda", bench.SEEDS)
    assert found["shapes"] == bench.SEEDS and found["worst_share_of_tolerance"] <= 1


@pytest.mark.parametrize("name", NAMES)
def test_parity_where_it_is_timed(name):
    cases = importlib.import_module(f"parsimony.kernels.{name}").cases("cuda")
    assert cases
    for case in cases:
        assert case.error() <= case.tolerance, case.name


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_again(name):
    """No kernel adds in an order that depends on the moment."""
    case = importlib.import_module(f"parsimony.kernels.{name}").cases("cuda")[0]
    first, second = case.ours(), case.ours()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
