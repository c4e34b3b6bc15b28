"""Methods with kernels against the same methods without: what runs on a GPU, interpreted where there is none."""

import pytest
import torch
import torch.nn.functional as F

from parsimony.kernels import cluster_assignment, confidence_entropy, low_bit_attention, page_scores, tree_attention
from parsimony.kernels.common import normal
from parsimony.methods.diffusion import sampler
from parsimony.methods.diffusion.sampler import View
from parsimony.methods.kv_cache import gear, kivi, louiskv, retrieval
from parsimony.models import kv_cache
from parsimony.models.kv_cache import KVCache

MODULES = (
    cluster_assignment, confidence_entropy, low_bit_attention, page_scores, tree_attention, sampler, gear, kivi,
    retrieval, kv_cache,
)  # fmt: skip

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted here")


@pytest.fixture
def kernels(monkeypatch):
    """A function that turns kernels on, and returns the calls that they get from then on."""
    calls = []

    def turn_on():
        for module in MODULES:
            monkeypatch.setattr(module, "usable", lambda x: True)
        for module in (cluster_assignment, confidence_entropy, low_bit_attention, page_scores, tree_attention):
            launch = module.launch
            monkeypatch.setattr(module, "launch", lambda *a, launch=launch, **b: (calls.append(a[0]), launch(*a, **b)))
        return calls

    return turn_on


def test_the_cache_attends_to_trees(kernels):
    cache, tree = KVCache(1, 1, 2, 64, 16), tree_attention.tree(7, 0)
    mask = F.pad(torch.zeros(7, 7).masked_fill(~tree, -torch.inf), (20, 0)).repeat(3, 1)
    q, past, new = (
        normal(0, 1, 2, 21, 16, device="cpu"),
        normal(1, 1, 2, 20, 16, device="cpu"),
        normal(2, 1, 2, 7, 16, device="cpu"),
    )
    found = []
    for on in (False, True):
        calls = kernels() if on else []
        cache.clear()
        cache.write(0, past, past)
        found.append(cache.attend(0, q, new, new, mask))
    assert calls and torch.allclose(*found, atol=1e-5)


def test_a_view_of_logits(kernels):
    logits, rng = normal(0, 5, 300, device="cpu") * 3, None
    row = torch.tensor([299, 299, 7, 299, 299])
    plain = View.of(logits, row, 299, 0, 0.0, rng)
    expected = plain.confidence, plain.entropy
    calls = kernels()
    view = View.of(logits, row, 299, 0, 0.0, rng)
    assert torch.equal(view.tokens, plain.tokens) and view.entropy.dtype == torch.float64
    for ours, right in zip((view.confidence, view.entropy), expected, strict=True):
        assert torch.allclose(ours, right, atol=1e-5)
    assert calls and "probs" not in view.__dict__


@pytest.mark.parametrize("units", ["clusters", "pages"])
def test_louiskv(kernels, units):
    keys, values = (normal(seed, 2, 90, 16, device="cpu") for seed in (0, 1))
    steps = [normal(seed, 2, 3, 16, device="cpu") for seed in range(2, 6)]
    found = []
    for on in (False, True):
        calls = kernels() if on else []
        held = louiskv.Louis(keys, values, 20, louiskv.LouisKV(20, 2.0, units=units, size=8, local=6), 0)
        outputs = []
        for q in steps:
            held.append(q[:, 0], q[:, 1])
            outputs.append(held.attend(q, 0)[0])
        found.append(torch.stack(outputs))
    assert calls and torch.allclose(*found, atol=1e-5)


@pytest.mark.parametrize(
    "method", [kivi.Kivi(2, 4), gear.Gear(2, 2, group=32, gap=32), gear.Gear(4, 4, "kcvt", gap=20)]
)
def test_low_bit_caches(kernels, method):
    cache = {kivi.Kivi: kivi.Quantised, gear.Gear: gear.Corrected}[type(method)]
    keys, values = (normal(seed, 2, 100, 16, device="cpu") for seed in (0, 1))
    steps = [normal(seed, 2, 3, 16, device="cpu") for seed in range(2, 38)]
    found = []
    for on in (False, True):
        calls = kernels() if on else []
        held, outputs = cache(keys, values, method), []
        for n, q in enumerate(steps):
            held.append(q[:, 0], q[:, 1])
            if n % 17 == 0:
                outputs.append(held.attend(q, 0)[0])
        found.append(torch.stack(outputs))
    assert torch.allclose(*found, atol=1e-4)
    assert bool(calls) != (isinstance(method, gear.Gear) and method.whole)  # whole vectors are another layout


def test_without_a_gpu_methods_compute_what_they_did():
    """Bit for bit, in the words in which the papers' formulas stood in the methods."""
    q, K, V = (
        normal(0, 1, 2, 9, 16, device="cpu"),
        normal(1, 1, 2, 30, 16, device="cpu"),
        normal(2, 1, 2, 30, 16, device="cpu"),
    )
    mask = F.pad(torch.zeros(9, 9).masked_fill(~tree_attention.tree(9, 1), -torch.inf), (21, 0))
    assert torch.equal(kv_cache.attend(q, K, V, mask, 9), F.scaled_dot_product_attention(q, K, V, attn_mask=mask))

    view = View.of(normal(3, 4, 50, device="cpu") * 3, torch.tensor([49, 1, 49, 49]), 49, 0, 0.0, None)
    assert torch.equal(view.entropy, torch.special.entr(view.probs).sum(-1))
    assert torch.equal(view.confidence[2:], view.probs.gather(-1, view.tokens[:, None])[2:, 0])

    keys = normal(4, 2, 60, 16, device="cpu")
    held = louiskv.Louis(keys, keys, 20, louiskv.LouisKV(20, units="pages", size=8, local=6), 0)
    q = normal(5, 2, 3, 16, device="cpu")
    low, high = (each.float() for each in held.index)
    bound = q.clamp(min=0) @ high.mT + q.clamp(max=0) @ low.mT
    assert torch.equal(held.scores(q), (bound / 16**0.5).softmax(-1).mean(1))
