"""ParallelBench: tasks and graders, the theory in closed form and by enumeration, and the exact model."""

import math
from random import Random

import numpy as np
import pytest
import torch

from parsimony.benchmarks.parallel_bench import lists, puzzles, theory, writing
from parsimony.benchmarks.parallel_bench.ideal import Ideal
from parsimony.benchmarks.parallel_bench.tasks import CERTAIN, GROUPS, example, examples, grade
from parsimony.methods.diffusion.freedave import FreeDave, FreeDaveSampler
from parsimony.methods.diffusion.sampler import BlockSampler
from parsimony.methods.diffusion.static_unmasking import TopK
from parsimony.methods.diffusion.threshold_unmasking import AtLeast


def table(task: str, n: int) -> np.ndarray:
    """Equally likely answers of the theory, as numbers; of shuffle all permutations."""
    query = lists.query(task, Random(n), n, "letters")
    answers = query.answers() + ([query.items] if task == "shuffle" else [])
    return np.array([[ord(item) for item in answer] for answer in answers])


@pytest.mark.parametrize("task", GROUPS)
def test_every_right_answer_scores_and_seeds_decide(task):
    for one in examples(task, 24):
        assert grade(one, one.answer) == grade(one, one.answer, strict=True) == 1
        assert grade(one, "") == 0
    assert examples(task, 24) == examples(task, 24)
    assert len({one.prompt for one in examples(task, 24)}) > 20


@pytest.mark.parametrize("form", lists.FORMS)
@pytest.mark.parametrize("task", lists.SEEDS)
def test_answers_are_all_that_the_grader_takes(task, form):
    rng = Random(1)
    for n in (3, 4, 5):
        query = lists.query(task, rng, n, form)
        answers = query.answers()
        assert len(set(answers)) == len(answers) and (len(answers) == 1) == (task in lists.CERTAIN)
        assert all(lists.score(query, lists.shown(answer, form)) == 1 for answer in answers)
        for answer in answers:
            assert lists.score(query, lists.shown(answer[:-1], form)) == (answer[:-1] in answers)
            assert lists.score(query, lists.shown((*answer, answer[0]), form)) == 0
    assert set(CERTAIN) - {"sudoku"} == set(lists.CERTAIN)


def test_lists_are_read_loosely_and_strictly():
    assert lists.read('So: ["A B", "C D"] and more') == ["A B", "C D"] == lists.read('["A B", "C D"]', strict=True)
    assert lists.read("[A B, 'C D'") == ["A B", "C D"] and lists.read("[A B, 'C D'", strict=True) is None
    assert lists.read('["A B","C D"]', strict=True) is None


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_total_correlation_is_the_closed_form(n):
    for task in ("replace_random", "shuffle"):
        assert math.isclose(theory.total_correlation(table(task, n)), theory.correlation(task, n), abs_tol=1e-9)
    for task in lists.CERTAIN:
        assert theory.total_correlation(table(task, n)) == theory.correlation(task, n) == 0
    published = {"insert_random": (2.62, 3.39, 4.14, 4.88), "remove_random": (0.25, 0.62, 1.06, 1.55)}
    for task, values in published.items():
        assert theory.total_correlation(table(task, n)) == pytest.approx(values[n - 3], abs=0.006)
    assert theory.correlation("replace_random", 10_000) == pytest.approx(math.log2(math.e), abs=1e-3)


@pytest.mark.parametrize("task", ["replace_random", "shuffle", "insert_random"])
def test_the_bound_never_rises_with_the_steps(task):
    answers = table(task, 4)
    n = answers.shape[1]
    bounds = [theory.best_bound(answers, steps) for steps in range(1, n + 1)]
    assert bounds[0] == pytest.approx(theory.total_correlation(answers)) and bounds[-1] == pytest.approx(0, abs=1e-9)
    assert all(later <= earlier + 1e-9 for earlier, later in zip(bounds, bounds[1:], strict=False))


class Tokens:
    """What the sampler needs of a model, for the exact one."""

    mask_id, stop_ids, shifted = 0, frozenset(), False


def accuracy(task: str, n: int, strategy, temperature: float, runs: int) -> float:
    """Share of right answers of the exact model; of shuffle all permutations are right."""
    rng, right = np.random.default_rng(n), 0
    answers = torch.from_numpy(table(task, n))
    network = Ideal(answers, 0, 128, 0)
    sampler = BlockSampler(Tokens(), strategy, temperature=temperature)
    for _ in range(runs):
        found = sampler.unmask(network, torch.empty(0, dtype=torch.int64), answers.shape[1], rng).tokens
        right += bool((answers == found).all(1).any())
    return right / runs


@pytest.mark.parametrize(("task", "n"), [("replace_random", 3), ("shuffle", 3), ("shuffle", 4)])
def test_drawing_all_slots_at_once_is_right_as_often_as_the_closed_form_says(task, n):
    expected, runs = theory.one_step_accuracy(task, n), 2000
    spread = 4 * math.sqrt(expected * (1 - expected) / runs)
    assert accuracy(task, n, TopK("random", n), 1.0, runs) == pytest.approx(expected, abs=spread)


@pytest.mark.parametrize(("task", "n", "k"), [("shuffle", 6, 2), ("shuffle", 6, 3), ("replace_random", 4, 2)])
def test_greedy_top_k_is_right_as_often_as_the_closed_form_says(task, n, k):
    """Ties at random: a noise that only decides between equals."""
    expected, runs = theory.greedy_accuracy(task, n, k), 1000
    spread = 4 * math.sqrt(expected * (1 - expected) / runs)
    found = accuracy(task, n, Shuffled(k), 1e-4, runs)
    assert found == pytest.approx(expected, abs=spread)


class Shuffled(TopK):
    """Top-k by confidence with ties between positions at random."""

    def __init__(self, k: int):
        super().__init__("low_confidence", k)
        self.score = lambda view: view.confidence + 1e-9 * torch.from_numpy(view.rng.random(len(view.tokens)))


@pytest.mark.parametrize("task", lists.SEEDS)
def test_one_token_at_a_time_the_exact_model_solves_everything(task):
    assert accuracy(task, 4, TopK("low_confidence", 1), 0.0, 1) == 1
    assert accuracy(task, 4, AtLeast(1.0), 0.0, 1) == 1


@pytest.mark.parametrize("task", lists.SEEDS)
def test_freedave_of_the_exact_model_is_its_static_decoder(task):
    answers, rng = torch.from_numpy(table(task, 4)), np.random.default_rng(0)
    nothing, n = torch.empty(0, dtype=torch.int64), answers.shape[1]
    static = BlockSampler(Tokens(), TopK("low_confidence", 1)).unmask(Ideal(answers, 0, 128, 0), nothing, n, rng)
    found = FreeDaveSampler(Tokens(), FreeDave(4)).unmask(Ideal(answers, 0, 128, 0), nothing, n, rng)
    assert torch.equal(found.tokens, static.tokens) and found.cost.passes <= static.cost.passes


@pytest.mark.parametrize("task", ["replace_random", "shuffle"])
@pytest.mark.parametrize("tau", [0.3, 0.6, 0.7, 0.8])
def test_a_threshold_rescues_a_task_only_above_its_confidence(task, tau):
    assert accuracy(task, 4, AtLeast(tau), 0.0, 1) == theory.threshold_accuracy(task, 4, tau)


def test_sudokus_have_one_solution_and_squares_many():
    assert len(puzzles.grids()) == 288
    rng = Random(0)
    for _ in range(20):
        puzzle = puzzles.sudoku(rng)
        assert puzzle.given.count("0") == 16 - puzzles.GIVEN
        assert all(g in ("0", s) for g, s in zip(puzzle.given, puzzle.solution, strict=True))
        square = puzzles.latin(rng)
        text = square.answer(rng)
        assert square.score(text) == 1 and square.score(text.replace(text[0], text[2])) == 0


def test_sentences_agree_in_number():
    assert writing.grammatical("two sailors watch one wet boat.") and writing.grammatical(
        "one cook heats two hot pans."
    )
    for wrong in ("two sailor watch one boat.", "two sailors watches one boat.", "one boat watch one boat.", "two."):
        assert not writing.grammatical(wrong)
    rng = Random(3)
    for task in writing.TASKS:
        for _ in range(50):
            one = example(task, rng)
            assert writing.grammatical(one.answer) and one.request.included(one.answer) == 1
