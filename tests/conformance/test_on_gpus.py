"""Every method computes on a GPU, or on two, what it computes on the processor; without one, on pretended ones."""

import contextlib

import numpy as np
import pytest
import torch
from pretend_gpus import PretendGpus
from test_methods import METHODS, arriving, build, contexts, inputs, models, pairs, prompts, run  # noqa: F401

from parsimony.methods.kv_cache.held import prefill
from parsimony.methods.kv_cache.pie import Edit
from parsimony.models.language import Language
from parsimony.models.masked import Masked
from parsimony.models.seq2seq import Seq2Seq

USES = {
    "TextGenerator": lambda s, decoder: [s.generate(p, 12, np.random.default_rng(0)).tokens for p in prompts()],
    "BatchGenerator": lambda s, decoder: [
        one.tokens for one in s.generate_batch(prompts(), 9, np.random.default_rng(0), 2).generations
    ],
    "MultiGenerator": lambda s, decoder: s.generate_many(prompts()[2], 9, np.random.default_rng(0)).tokens,
    "LanguageModel": lambda s, decoder: [s.nll(prompts()[2])],
    "Guesser": lambda s, decoder: [s.guess(prompts()[2], torch.tensor([3, 9, 20]))],
    "ContextHolder": lambda s, decoder: go_on(s.hold(arriving(decoder, contexts(70)[0]))[0]),
    "ParallelReader": lambda s, decoder: go_on(s.read(contexts(9)[0], [contexts(n)[0] for n in (5, 21)])[0]),
    "CacheEditor": lambda s, decoder: go_on(
        s.edit(prefill(decoder, contexts(70)[0]), [Edit(20, 22, torch.tensor([5, 6, 7]))])[0]
    ),
}
"""What a method is made to do, by interface; all that comes out."""
PEERS = ("hf_assisted", "hf_prompt_lookup", "kvpress")
"""Their networks are other libraries' modules, whose parameters the pretence does not see."""
POINTS = [
    (*pair, interface)
    for interface in USES
    for pair in pairs(interface)
    if METHODS[pair[0]].architecture in ("decoder", "masked", "seq2seq") and pair[0] not in PEERS
]
FIRST = list({method: (method, point, interface) for method, point, interface in reversed(POINTS)}.values())


def go_on(context) -> list[torch.Tensor]:
    return [run(context, ids) for ids in (contexts(40)[1][:9], contexts(40)[1][9:10])]


def gpus():
    """For a ``with``: real GPUs where there are some."""
    return contextlib.nullcontext() if torch.cuda.is_available() else PretendGpus()


def load(folder, other, devices) -> dict:
    with gpus():
        return {
            "seq2seq": Seq2Seq.load(other, ["<end>"], "float32", devices),
            "decoder": Language.load(folder, ["<|im_end|>"], "float32", devices),
            "masked": Masked.load(folder, "<|im_start|>", ["<|im_end|>"], "float32", devices=devices),
        }


@pytest.fixture(scope="session")
def on_one(tiny_folder, tiny_seq2seq) -> dict:
    return load(tiny_folder, tiny_seq2seq.folder, "cuda")


@pytest.fixture(scope="session")
def on_two(tiny_folder, tiny_seq2seq) -> dict:
    return load(tiny_folder, tiny_seq2seq.folder, ("cuda:0", "cuda:0" if torch.cuda.device_count() == 1 else "cuda:1"))


def same_on(placed, models, inputs, method, point, interface):  # noqa: F811
    kind, use = METHODS[method].architecture, USES[interface]
    expected = use(build(method, point, models, inputs), models[kind].decoder)
    with gpus():
        found = use(build(method, point, placed, inputs), placed[kind].decoder)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other.cpu(), one, atol=2e-3, rtol=2e-3)  # matrices are packed on processors alone


@pytest.mark.slow
@pytest.mark.parametrize(("method", "point", "interface"), POINTS)
def test_one_gpu_gives_what_the_processor_gives(on_one, models, inputs, method, point, interface):  # noqa: F811
    same_on(on_one, models, inputs, method, point, interface)


@pytest.mark.parametrize(("method", "point", "interface"), FIRST)
def test_two_gpus_give_what_the_processor_gives(on_two, models, inputs, method, point, interface):  # noqa: F811
    same_on(on_two, models, inputs, method, point, interface)


def test_the_pretence_refuses_what_a_gpu_refuses():
    here = torch.arange(3)
    with PretendGpus():
        there = here.to("cuda")
        assert str((there + 1).device) == "cuda:0" and there[here].tolist() == there.cpu().tolist() == [0, 1, 2]
        for wrong in (
            lambda: here + there, lambda: torch.cat((here, there)), lambda: here[there], lambda: there.numpy(),
            lambda: here.index_add(0, here, there), lambda: here.__setitem__(here, there),
            lambda: torch.rand(3, generator=torch.Generator(), device="cuda"), lambda: there + here.to("cuda:1"),
        ):  # fmt: skip
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
        assert here.tolist() == [0, 1, 2]
