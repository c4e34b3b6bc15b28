"""Question sets of the hub: what is asked, and the measures of answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsimony.assets import rehearsal
from parsimony.benchmarks.cache_answers import CacheAnswers, cut
from parsimony.benchmarks.hub_tasks import LONG, TASKS, boxed, chosen, code_line, common, counted, last_number, rouge_l
from parsimony.benchmarks.masked_answers import MaskedAnswers
from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.diffusion.static_unmasking import Static
from parsimony.methods.kv_cache.full import Full
from parsimony.methods.kv_cache.streaming_llm import StreamingLLM
from parsimony.models.language import Language
from parsimony.models.masked import Masked


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The stand-ins of all three data sets."""
    folders = {}
    for data in rehearsal.ROWS:
        folders[data] = tmp_path_factory.mktemp(data)
        files = sorted({task.file for task in TASKS.values() if task.asset == data})
        rehearsal.rows(folders[data], {}, data, files)
    return folders


@given(st.text("abc", max_size=20), st.text("abc", max_size=20))
def test_the_longest_common_subsequence_is_that_of_the_textbook(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert common(a, b) == table[-1][-1]


@pytest.mark.parametrize(
    ("grade", "text", "answer", "worth"),
    [
        (last_number, "2 and 3 are 5. So 1,234 it is.", "1234", 1.0),
        (last_number, "I do not know", "5", 0.0),
        (last_number, "first 5, then -5", "5", 0.0),
        (boxed, r"so \boxed{\frac12}", r"\dfrac{1}{2}", 1.0),
        (boxed, r"\boxed{1} or rather \boxed{\text{east}}", "east", 1.0),
        (boxed, r"\boxed{2", "2", 0.0),
        (boxed, "2", "2", 0.0),
        (counted, "3, no, 7", "Paragraph 7", 0.5),
        (counted, "none", "7", 0.0),
        (code_line, "# a comment\nreturn x\nreturn y", "return x", 1.0),
        (code_line, "```\n", "return x", 0.0),
        (rouge_l, "the cat sat there", "a cat sat", 0.8),
    ],
)
def test_answers_are_worth_what_their_task_says(grade, text, answer, worth):
    assert grade(text, answer) == pytest.approx(worth)


def test_a_choice_inside_a_longer_one_that_is_named_does_not_count():
    choices = ("Other number", "number", "Date")
    assert chosen("Other number", "Other number", choices) == 1.0
    assert chosen("number or Date", "Date", choices) == 0.5
    assert chosen("Date", "number", choices) == 0.0


def test_a_long_prompt_loses_its_middle():
    import torch

    ids = torch.arange(10)
    assert cut(ids, 10).equal(ids)
    assert cut(ids, 5).tolist() == [0, 1, 7, 8, 9]


def test_a_smaller_count_takes_the_first_rows_of_a_larger(paths):
    few, many = (MaskedAnswers("float32", False, ["gsm8k"], count, 8).items(paths, 0) for count in (2, 4))
    assert [item.id for item in few] == [item.id for item in many][:2] and len({item.id for item in many}) == 4


def test_every_task_is_asked_with_its_text_and_knows_its_answers(paths):
    benchmark = CacheAnswers("float32", False, list(TASKS), 2, 400)
    items = benchmark.items(paths, 0)
    assert [item.category for item in items] == [*TASKS, *TASKS]
    for item in items:
        asked = benchmark.asked[item.id]
        assert asked.answers and all(isinstance(answer, str) for answer in asked.answers)
        if item.category in LONG:
            assert "Nothing else is known" in item.turns[0]
    maths = next(item for item in items if item.category == "gsm8k")
    assert benchmark.asked[maths.id].score(f"The answer is {benchmark.asked[maths.id].answers[0]}") == 1.0


def test_an_unknown_task_is_refused():
    with pytest.raises(UserError, match="there is no task 'gsm9k' of the hub; valid: gsm8k"):
        CacheAnswers("float32", False, ["gsm9k"], 1, 100)


class Bench:
    """A workbench of some systems on one model."""

    lossless = False

    def __init__(self, model, methods):
        self.loaded, self.methods, self.points = model, methods, tuple(methods)

    def model(self, dtype):
        return self.loaded

    def kept(self, code, settings, make):
        return make()

    def system(self, point, dtype):
        return self.methods[point].build(self.loaded, Inputs())

    def rng(self, item):
        import numpy as np

        return np.random.default_rng(0)


def test_answers_over_a_compressed_prompt_are_those_of_the_method_alone(paths, tmp_path):
    rehearsal.checkpoint(tmp_path, {}, "llama_3")
    model = Language.load(tmp_path, ["<|eot_id|>"], "float32")
    bench = Bench(model, {"full": Full(), "streaming": StreamingLLM(40, "tokens")})
    benchmark = CacheAnswers("float32", False, ["qasper", "gsm8k"], 1, 200, limit=6)
    for item in benchmark.items(paths, 0):
        outcome = benchmark.measure(item, bench)
        numbers = {(point, metric): value for point, metric, value, _ in outcome.numbers}
        ids = cut(model.chat([{"role": "user", "content": item.turns[0]}]), 200)
        for point in bench.points:
            alone = bench.system(point, "float32").generate(ids, 6, None).tokens
            assert numbers[point, "score"] == benchmark.asked[item.id].score(model.decode(alone))
            assert numbers[point, "answer_tokens"] == len(alone)
        assert numbers["streaming", "cache_bytes"] < numbers["full", "cache_bytes"]


def test_masked_models_are_asked_in_their_chat_template(paths, tmp_path):
    rehearsal.checkpoint(tmp_path, {}, "llada")
    model = Masked.load(tmp_path, "<|mdm_mask|>", ["<|eot_id|>"], "float32")
    benchmark = MaskedAnswers("float32", False, ["math_500"], 1, 8)
    (item,) = benchmark.items(paths, 0)
    prompt = model.tokenizer.decode(benchmark.encoded(benchmark.asked[item.id], model).tolist())
    assert prompt.startswith("<|start_header_id|>user") and item.turns[0] in prompt
    outcome = benchmark.measure(item, Bench(model, {"k_2": Static(block=8, per_step=2)}))
    numbers = {metric: value for _, metric, value, _ in outcome.numbers}
    assert numbers["unmasked"] == 8 and numbers["forward_passes"] == 4
