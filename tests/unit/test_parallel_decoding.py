"""What Learn2PD and dParallel train: the oracle's replay, the two views of a block, and LoRA."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from parsimony.methods.diffusion import learn2pd
from parsimony.methods.diffusion.learn2pd import Whole
from parsimony.methods.diffusion.sampler import BlockSampler
from parsimony.recipes import parallel_decoding as recipe
from parsimony.recipes.task_mix import MASK


@pytest.fixture(scope="module")
def network():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def asked(length: int, mask: int = MASK) -> recipe.Questions:
    torch.manual_seed(1)
    return recipe.Questions(torch.randint(2, 40, (5, 6)), torch.tensor([0, 1, 0, 3, 2]), torch.full((5, length), mask))


@pytest.mark.parametrize("length", [32, 80])
def test_the_oracle_ends_with_the_static_answer_in_no_more_passes_than_tokens(tiny_masked, length):
    model = recipe.Reader(tiny_masked)
    questions = asked(length, model.mask)
    questions.answers = recipe.static_answers(model, questions)
    assert not bool((questions.answers == model.mask).any())
    for row in range(5):  # as the sampler answers each prompt without its padding
        prompt, sampler = (
            questions.prompts[row, questions.pads[row] :],
            BlockSampler(tiny_masked, Whole(), recipe.BLOCK),
        )
        sampler.generate(prompt, length, np.random.default_rng(0))
        assert torch.equal(torch.cat(sampler.strategy.tokens), questions.answers[row])
    c, labels, whose = recipe.replay(model, questions)
    for row in range(5):
        mine = labels[whose == row]
        assert len(recipe.blocks(length)) <= len(mine) <= 2 * length
    assert 0 <= float(c.min()) <= float(c.max()) <= 1 and set(labels.unique().tolist()) <= {0.0, 1.0}


def test_blocks_cover_an_answer():
    spans = recipe.blocks(80)
    assert spans[0].start == 0 and spans[-1].stop == 80 and all(a.stop == b.start for a, b in pairwise(spans))


def test_the_loss_is_finite_without_a_right_prediction_and_later_blocks_bear_none(network):
    questions = asked(64)
    questions.answers = torch.randint(1, 40, (5, 64))
    half = torch.rand(5, 32) < 0.5
    found = recipe.forced(network, questions, 0, half, 2.0)
    later = recipe.Questions(questions.prompts, questions.pads, questions.answers.clone())
    later.answers[:, 32:] = torch.randint(1, 40, (5, 32))
    assert torch.isfinite(found) and torch.equal(found, recipe.forced(network, later, 0, half, 2.0))
    earlier = recipe.Questions(questions.prompts, questions.pads, questions.answers.clone())
    earlier.answers[:, :32] = torch.randint(1, 40, (5, 32))
    assert not torch.equal(
        recipe.forced(network, earlier, 32, half, 2.0), recipe.forced(network, questions, 32, half, 2.0)
    )


def test_lora_begins_as_the_network_and_merging_keeps_what_it_learnt(network):
    import copy

    mine, ids = copy.deepcopy(network), torch.randint(1, 40, (2, 9))
    with torch.no_grad():
        before = mine(input_ids=ids).logits
        added = recipe.add_lora(mine, 4)
        torch.testing.assert_close(mine(input_ids=ids).logits, before)
        for parameter in added:
            parameter += 0.05 * torch.randn_like(parameter)
        learnt = mine(input_ids=ids).logits
        assert len(added) == 2 * 7 * 2 and not torch.allclose(learnt, before)
        recipe.merge_lora(mine)
        torch.testing.assert_close(mine(input_ids=ids).logits, learnt, atol=1e-5, rtol=1e-4)
    assert set(dict(mine.named_parameters())) == set(dict(network.named_parameters()))


def test_the_filter_has_2112_parameters():
    shapes = {"w1": (32, 32), "w2": (32, 32), "b1": (32,), "b2": (32,)}
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    assert sum(tensor.numel() for tensor in weights.values()) == 2112
    assert learn2pd.logits(weights, torch.rand(3, 32)).shape == (3, 32)


def test_answers_shorter_than_a_block_are_distilled_too(network, tiny_masked):
    model = recipe.Reader(tiny_masked)
    questions = asked(5, model.mask)
    questions.answers = recipe.static_answers(model, questions)
    c, labels, whose = recipe.replay(model, questions)
    assert c.shape[1] == labels.shape[1] == learn2pd.BLOCK and not bool(labels[:, 5:].any())
    questions = recipe.Questions(questions.prompts, questions.pads, torch.randint(1, 40, (5, 5)))
    assert torch.isfinite(recipe.forced(network, questions, 0, torch.rand(5, learn2pd.BLOCK) < 0.5, 2.0))
