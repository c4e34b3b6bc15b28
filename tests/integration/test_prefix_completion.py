"""Real prefixes, the real SmolLM2 and its n-gram tables: what the benchmark measures there."""

import numpy as np
import pytest
import torch

from parsimony.assets import fetch
from parsimony.instantiate import instantiate
from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.ngrams import NgramTables
from parsimony.methods.autoregressive.superposed_decoding import SuperposedDecoding
from parsimony.methods.autoregressive.verify import VerifyLoop
from parsimony.models.language import Language
from parsimony.models.sentence_encoder import SentenceEncoder
from parsimony.plan import make_plan


@pytest.fixture(scope="module")
def plan(root):
    return make_plan(["suite=local"], root)


@pytest.fixture(scope="module")
def paths(plan, root):
    keys = ("smollm2_gguf", "smollm2_135m_instruct", "wiki_summaries", "smollm2_wiki_ngrams", "all_minilm_l6_v2")
    return {key: fetch(key, plan.lock, root / "resources") for key in keys}


class Bench:
    """A workbench on the real model in float32."""

    def __init__(self, plan, paths, method, points):
        self.points, config = points, plan.methods[method]
        self.loaded = Language.load(paths["smollm2_135m_instruct"], ["<|im_end|>"], "float32")
        inputs = Inputs({"ngrams": paths["smollm2_wiki_ngrams"]})
        self.systems = {
            point: instantiate(config.target, config.params | config.points[point]).build(self.loaded, inputs)
            for point in points
        }

    def model(self, dtype):
        return self.loaded

    def system(self, point, dtype):
        return self.systems[point]

    def rng(self, item):
        return np.random.default_rng(0)


def test_the_benchmark_measures_drafts_of_real_prefixes(plan, paths):
    benchmark = instantiate(plan.benchmarks["prefix_completion"].target, plan.params("prefix_completion"))
    items = benchmark.items(paths, seed=0)
    assert len(items) == benchmark.count == len({item.id for item in items})
    bench = Bench(plan, paths, "superposed_decoding", ("three", "one"))
    for item in items[:2]:
        outcome = benchmark.measure(item, bench)
        found = {(point, metric): value for point, metric, value, _ in outcome.numbers}
        for m in (1, 2, 3):
            assert found["three", f"hit_{m}_at_1"] <= found["three", f"hit_{m}_at_2"] <= found["three", f"hit_{m}_at_3"]
        assert found["three", "forward_passes"] == found["one", "forward_passes"] == 10
        assert (
            found["three", "best_nll"] / found["three", "best_tokens"]
            <= found["three", "nll"] / found["three", "tokens"]
        )
        assert 0 < found["three", "distinct_bigrams"] <= found["three", "bigrams"]
        assert all(-1 <= c <= 1 + 1e-6 for c in outcome.outputs["three", "linearity"])
        assert found["one", "hit_1_at_3"] == found["one", "hit_1_at_1"]
        drafts = [torch.tensor(outcome.outputs["three", f"draft_{n}"]).long() for n in (1, 2, 3)]
        prefix = bench.loaded.encode(item.turns[0])[:15]
        loop = VerifyLoop(bench.loaded)
        nll = sum(float(loop.nll(torch.cat((prefix, draft)))[14:].sum()) for draft in drafts)
        assert found["three", "nll"] == pytest.approx(nll, abs=1e-3)


def test_one_draft_of_the_real_model_is_greedy(paths):
    model = Language.load(paths["smollm2_135m_instruct"], ["<|im_end|>"], "float32")
    decoder = SuperposedDecoding(drafts=1, mixing="none").build(model, Inputs())
    for text in ("The history of mathematics begins with", "Photosynthesis is the process by which"):
        prompt = model.encode(text)
        greedy = VerifyLoop(model).generate(prompt, 12, np.random.default_rng(0)).tokens
        assert decoder.generate_many(prompt, 12, np.random.default_rng(0)).tokens[0].tolist() == greedy.tolist()


def test_the_tables_know_common_phrases_and_hold_nothing_of_the_evaluation_part(paths):
    from parsimony.benchmarks.wiki_split import extracts

    tables = NgramTables.load(paths["smollm2_wiki_ngrams"] / "ngrams.safetensors")
    model = Language.load(paths["smollm2_135m_instruct"], ["<|im_end|>"], "float32")
    phrase = model.encode(" one of the most")
    assert tables.probabilities(phrase[None, :-1].numpy(), phrase[-1:].numpy(), len(phrase))[0, 0] > 0.1
    texts = dict(extracts(paths["wiki_summaries"], "counting"))
    counted = sum(int(c.sum()) for c in tables.counts[:1])
    tokens = sum(len(model.encode(text)) for text in texts.values())
    assert counted == tokens - len(texts)  # every bigram of the counting part and no other


def test_sentence_vectors_tell_likeness(paths):
    encoder = SentenceEncoder(paths["all_minilm_l6_v2"])
    a, b, c = encoder.encode(["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell."])
    assert float(a @ a) == pytest.approx(1, abs=1e-5)
    assert float(a @ b) > 0.4 > 0.2 > float(a @ c)
