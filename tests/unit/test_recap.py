"""ReCAP: schedule and groups, equality with the generator's own sampler, and local steps that are exact."""

import numpy as np
import pytest
import torch

from parsimony.benchmarks.digits import frechet
from parsimony.errors import UserError
from parsimony.interfaces import Cost
from parsimony.methods.diffusion.recap import N, Recap, RecapSampler, State
from parsimony.models.masked_image import CODES, FIRST_CLASS, MASK

CLASSES = torch.tensor([0, 4, 9])


def sample(model, settings: Recap):
    return RecapSampler(model, settings).generate_images(CLASSES, np.random.default_rng(3))


@pytest.mark.parametrize("steps", [1, 5, 16, 32, 49])
@pytest.mark.parametrize("full_first", [0, 3, 50])
@pytest.mark.parametrize("local", [0, 1, 3])
def test_groups_hold_every_step_once_and_all_codes(steps, full_first, local):
    settings = Recap(steps, full_first, local)
    counts = settings.schedule()
    assert sum(counts) == N and min(counts) >= 1 and len(counts) == steps
    assert [t for group in settings.groups() for t in group] == list(range(steps))
    assert all(len(group) == 1 for group in settings.groups()[: min(full_first, steps)])


def test_more_steps_than_codes_are_refused():
    with pytest.raises(UserError, match="50 steps are more than the 49 codes"):
        Recap(50)


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_without_local_steps_it_is_the_generators_own_sampler(tiny_image, guidance):
    own, cost = sample(tiny_image, Recap(12, 0, 0, guidance=guidance))
    same, _ = sample(tiny_image, Recap(12, 12, 1, guidance=guidance))
    assert torch.equal(own, same)
    assert cost.passes == 12 and cost.rows == 12 * 3 * 50 * (2 if guidance else 1)


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_a_local_step_on_unchanged_input_gives_the_full_steps_logits(tiny_image, guidance):
    sampler = RecapSampler(tiny_image, Recap(16, 0, 1, guidance=guidance))
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, CODES, (3, N)))
    x[torch.from_numpy(rng.random((3, N)) < 0.6)] = MASK
    state = State(x, CLASSES + FIRST_CLASS, Cost())
    rows = 6 if guidance else 3
    cache = tiny_image.decoder.cache(N + 1, rows)
    full = sampler.run(state, torch.arange(N).expand(3, -1), cache, 5)
    targets = torch.stack([torch.from_numpy(rng.permutation(N)[:7]) for _ in range(3)])
    others = sampler.others(targets, rows)
    assert all(sorted((others[b] - 1).tolist() + targets[b % 3].tolist()) == list(range(N)) for b in range(rows))
    cache.keep(others)
    local = sampler.run(state, targets, cache, 5)
    torch.testing.assert_close(local, full.gather(1, targets[..., None].expand(-1, -1, CODES)), atol=1e-4, rtol=1e-4)


def test_local_steps_run_fewer_rows_the_earlier_they_begin(tiny_image):
    rows = [sample(tiny_image, Recap(16, first, 1))[1].rows for first in (0, 8, 16)]
    assert rows[0] < rows[1] < rows[2] == 16 * 3 * 50


def test_the_frechet_distance_is_that_of_gaussians():
    a, b = np.diag([1.0, 4.0]), np.diag([9.0, 4.0])
    assert frechet(np.zeros(2), a, np.zeros(2), a) == pytest.approx(0)
    assert frechet(np.zeros(2), a, np.array([3.0, 0]), b) == pytest.approx(9 + (3 - 1) ** 2)
