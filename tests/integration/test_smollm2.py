"""The real SmolLM2-135M-Instruct: parity with transformers, and losslessness on real prompts."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from parsimony.assets import fetch
from parsimony.benchmarks.agentic_sql import ASSET, AgenticSql
from parsimony.benchmarks.code_edit import NEW, OLD, CodeEdit
from parsimony.benchmarks.continuation import Conversation
from parsimony.benchmarks.copying import copied_tokens
from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.batch_speculative import BatchSpeculative
from parsimony.methods.autoregressive.draft_model import DraftNetwork
from parsimony.methods.autoregressive.hf_assisted import HfAssisted
from parsimony.methods.autoregressive.hf_prompt_lookup import HfPromptLookup
from parsimony.methods.autoregressive.prompt_lookup import PromptLookup
from parsimony.methods.autoregressive.token_recycling import TokenRecycling
from parsimony.methods.autoregressive.verify import VerifyLoop
from parsimony.models.language import Language
from parsimony.plan import make_plan
from parsimony.recipes import own_outputs

REQUESTS = ("Why is the sky blue?", "Write a haiku about rivers, then explain each line of the haiku.")


@pytest.fixture(scope="module")
def folder(root):
    plan = make_plan([], root)
    for key in ("smollm2_gguf", "smollm2_135m_instruct"):
        path = fetch(key, plan.lock, root / "resources")
    return path


@pytest.fixture(scope="module")
def model(folder):
    return Language.load(folder, ["<|im_end|>"], "float32")


def test_logits_match_transformers(folder, model):
    """As near the exact (float64) logits as float32 of transformers: on average, and to 5e-6 of the largest, 37."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, local_files_only=True).eval()
    ids = model.chat([{"role": "user", "content": REQUESTS[1]}])[None]
    with torch.inference_mode():
        expected = exact(ids).logits
        rounding = float((theirs(ids).logits - expected).square().mean().sqrt())
    ours = model.decoder.prefill(ids, model.decoder.cache(64), want="all", chunk=16)
    assert float((ours - expected).square().mean().sqrt()) < 1.5 * rounding < 5e-5
    torch.testing.assert_close(ours.double(), expected, atol=5e-6 * float(expected.abs().max()), rtol=0)
    with torch.inference_mode():
        tokens = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False,
                                 pad_token_id=2)[0, ids.shape[1] :]  # fmt: skip
    assert VerifyLoop(model).generate(ids[0], 24, np.random.default_rng(0)).tokens.tolist() == tokens.tolist()


def test_the_end_of_a_turn_is_one_id_that_also_stands_in_prompts(model):
    prompt = model.chat([{"role": "user", "content": REQUESTS[0]}])
    (stop,) = model.stop_ids
    theirs = AutoTokenizer.from_pretrained(model.folder, local_files_only=True)
    assert theirs.pad_token_id == theirs.eos_token_id == stop
    assert (prompt == stop).sum() >= 2
    text = "Rivers, 12 rivers.\n"
    assert model.decode(model.encode(text)) == text


@pytest.mark.parametrize("method", [PromptLookup(), TokenRecycling(), HfPromptLookup(), HfAssisted()])
def test_lossless_on_real_prompts(model, method):
    system, greedy = method.build(model, Inputs()), VerifyLoop(model)
    for request in REQUESTS:
        prompt = model.chat([{"role": "user", "content": request}])
        expected = greedy.generate(prompt, 24, np.random.default_rng(0)).tokens.tolist()
        assert system.generate(prompt, 24, np.random.default_rng(0)).tokens.tolist() == expected


def test_prompt_lookup_and_its_peer_gain_the_same_in_every_pass(model):
    """On a real edit, whose answer copies the prompt; ours is the default point of `prompt_lookup`."""
    function = "def area(self, scale=1):\n    width = self.right - self.left\n    return scale * width * self.height\n"
    request = f"```python\n{function}```\n\nWrite this function again, with `scale=2` for `scale=1`."
    ours, theirs = PromptLookup().build(model, Inputs()), HfPromptLookup().build(model, Inputs())
    prompt = model.chat([{"role": "user", "content": request}])
    mine, other = (system.generate(prompt, 40, np.random.default_rng(0)) for system in (ours, theirs))
    assert mine.tokens.tolist() == other.tokens.tolist()
    assert mine.cost.accepted_per_pass == other.cost.accepted_per_pass
    assert max(mine.cost.accepted_per_pass) > 4


@pytest.mark.parametrize("make", [CodeEdit, AgenticSql])
def test_answers_copy_the_conversation(root, model, make):
    """A workload for copying drafters says nothing if the model does not copy; most of its tokens must be copies."""
    plan = make_plan([], root)
    paths = {key: fetch(key, plan.lock, root / "resources") for key in (OLD, NEW, ASSET)}
    key = "code_edit" if make is CodeEdit else "agentic_sql"
    settings = plan.params(key) | {"items": 1}
    benchmark = make(**settings)
    system, copied, tokens = PromptLookup().build(model, Inputs()), 0, 0
    for item in benchmark.items(paths, seed=0)[:3]:
        run, history = Conversation(model, system, item, settings["limit"], np.random.default_rng(0)), []
        for text, answer in zip(item.turns, run.answers, strict=True):
            history.append({"role": "user", "content": text})
            copied += copied_tokens(model.chat(history).tolist(), answer.tolist())
            history.append({"role": "assistant", "content": model.decode(answer)})
        tokens += run.total("tokens")
    assert copied > 0.5 * tokens


@pytest.fixture(scope="module")
def drafter(root, folder):
    """The shipped draft network, its lock row, and the answers that its recipe held out."""
    lock = make_plan([], root).lock
    if lock["smollm2_drafter"].source != "shipped":
        pytest.skip("the drafter's weights are not shipped; training them takes minutes")
    paths = [fetch(key, lock, root / "resources") for key in ("smollm2_drafter", "smollm2_own_outputs")]
    talks = own_outputs.read(paths[1])
    return paths[0], lock["smollm2_drafter"], talks[: len(talks) // 10]


def test_the_shipped_drafter_keeps_the_floor_of_its_recipe(model, drafter):
    folder, row, held = drafter
    network, right, total = DraftNetwork.distilled(model.decoder, folder), 0, 0
    for prompt, answer in held:
        ids = torch.cat((prompt, answer))[: row.params["length"]]
        logits = network.decoder.prefill(ids[None, :-1], network.decoder.cache(len(ids)), want="all")[0]
        right += int((network.best(logits)[len(prompt) - 1 :] == ids[len(prompt) :]).sum())
        total += len(ids) - len(prompt)
    assert right / total >= row.params["floor"]
    assert (folder / "drafter.safetensors").stat().st_size <= 4_000_000


def test_batches_are_lossless_on_real_prompts_of_unequal_length(model, drafter):
    requests = (*REQUESTS, "Hello!")
    prompts = [model.chat([{"role": "user", "content": request}]) for request in requests]
    expected = [VerifyLoop(model).generate(prompt, 24, np.random.default_rng(0)).tokens.tolist() for prompt in prompts]
    for scheduler in ("eqspec", "exspec"):
        system = BatchSpeculative(scheduler).build(model, Inputs({"drafter": drafter[0]}))
        for together in (None, 2):
            batch = system.generate_batch(prompts, 24, np.random.default_rng(0), together)
            assert [generation.tokens.tolist() for generation in batch.generations] == expected
            assert batch.cost.accepted > 0
