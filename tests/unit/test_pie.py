"""Positional Integrity Encoding: rotations compose, edits match the text, and exact parts are exact."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.benchmarks.context_edits import ContextEdits
from parsimony.errors import UserError
from parsimony.interfaces import CacheEditor, Inputs
from parsimony.methods.kv_cache.held import prefill
from parsimony.methods.kv_cache.pie import PIE, Edit, applied, edits_between

T = 40
NEAR = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def ids():
    return torch.from_numpy(np.random.default_rng(3).integers(2, 290, T + 30))


@pytest.fixture(scope="module")
def prefilled(tiny, ids):
    return prefill(tiny.decoder, ids[:T])


def edited(model, prefilled, *edits, update="rotate"):
    with torch.inference_mode():
        return PIE(update).edited(model.decoder, prefilled, list(edits))


tokens = st.lists(st.integers(2, 9), max_size=12).map(lambda x: torch.tensor(x, dtype=torch.int64))


@given(old=tokens, new=tokens.filter(len))
@settings(max_examples=50, deadline=None)
def test_edits_between_make_the_new_of_the_old(old, new):
    edits = edits_between(old, new)
    assert torch.equal(applied(old, edits), new)
    assert sum(edit.shift for edit in edits) == len(new) - len(old)


@given(a=st.integers(-300, 300), b=st.integers(-300, 300), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_rotations_compose_keep_norms_and_can_be_undone(tiny, a, b, seed):
    x = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(seed))

    def turned(y, by):
        return tiny.decoder.rope(y, torch.full((1, 1), by))

    torch.testing.assert_close(turned(turned(x, a), b), turned(x, a + b), **NEAR)
    torch.testing.assert_close(turned(turned(x, a), -a), x, **NEAR)
    torch.testing.assert_close(turned(x, a).norm(dim=-1), x.norm(dim=-1), **NEAR)


EDITS = {
    "insertion": [Edit(10, 10, torch.arange(20, 27))],
    "deletion": [Edit(10, 14, torch.empty(0, dtype=torch.int64))],
    "replacement": [Edit(10, 13, torch.arange(30, 33))],
    "two_places": [Edit(5, 7, torch.arange(40, 46)), Edit(20, 28, torch.arange(50, 53))],
}


@pytest.mark.parametrize("name", EDITS)
def test_keys_of_the_first_layer_are_exact_and_values_are_untouched(tiny, prefilled, name):
    edits = EDITS[name]
    new, rows = edited(tiny, prefilled, *edits)
    exact = prefill(tiny.decoder, applied(prefilled.ids, edits))
    torch.testing.assert_close(new.keys[0], exact.keys[0], **NEAR)
    torch.testing.assert_close(new.values[0], exact.values[0], **NEAR)
    first, behind = edits[0].begin, T - edits[-1].end - 1  # the last token is run again
    assert torch.equal(new.values[:, :, :first], prefilled.values[:, :, :first])
    assert torch.equal(new.keys[:, :, :first], prefilled.keys[:, :, :first])
    assert torch.equal(new.values[:, :, -1 - behind : -1], prefilled.values[:, :, -1 - behind : -1])
    assert not torch.allclose(new.values[1, :, -1 - behind : -1], exact.values[1, :, -1 - behind : -1], **NEAR)
    assert rows == sum(len(edit.ids) for edit in edits) + 1 and torch.equal(new.ids, exact.ids)


def test_new_tokens_see_the_prefix_alone(tiny, prefilled):
    edit = Edit(10, 12, torch.arange(60, 65))
    new, _ = edited(tiny, prefilled, edit)
    exact = prefill(tiny.decoder, torch.cat((prefilled.ids[:10], edit.ids)))
    torch.testing.assert_close(new.keys[:, :, :15], exact.keys, **NEAR)
    torch.testing.assert_close(new.values[:, :, :15], exact.values, **NEAR)


def test_nothing_to_edit_is_no_work(tiny, ids, prefilled):
    assert edits_between(prefilled.ids, prefilled.ids.clone()) == []
    for update in ("rotate", "conflict", "stale", "prefix"):
        new, rows = edited(tiny, prefilled, update=update)
        assert new is prefilled and rows == 0


@pytest.mark.parametrize("cut", [0, 1, 4])
@pytest.mark.parametrize("more", [0, 5])
def test_an_edit_at_the_very_end_is_exact(tiny, prefilled, cut, more):
    if not cut + more:
        return
    new, rows = edited(tiny, prefilled, Edit(T - cut, T, torch.arange(70, 70 + more)))
    exact = prefill(tiny.decoder, new.ids)
    assert rows == max(more, 1)
    for name in ("keys", "values", "logits"):
        torch.testing.assert_close(getattr(new, name), getattr(exact, name), **NEAR)


@given(at=st.integers(0, T - 1), count=st.integers(1, 9))
@settings(max_examples=8, deadline=None)
def test_inserting_and_deleting_again_restores_the_cache(tiny, prefilled, at, count):
    longer, _ = edited(tiny, prefilled, Edit(at, at, torch.arange(80, 80 + count)))
    back, rows = edited(tiny, longer, Edit(at, at + count, torch.empty(0, dtype=torch.int64)))
    assert rows == 1 and torch.equal(back.ids, prefilled.ids)
    for name in ("keys", "values", "logits"):
        torch.testing.assert_close(getattr(back, name), getattr(prefilled, name), **NEAR)


def test_several_edits_rotate_by_the_shift_so_far(tiny, prefilled):
    edits = EDITS["two_places"]
    both, _ = edited(tiny, prefilled, *edits)
    first, _ = edited(tiny, prefilled, edits[0])
    moved = Edit(edits[1].begin + edits[0].shift, edits[1].end + edits[0].shift, edits[1].ids)
    second, _ = edited(tiny, first, moved)
    torch.testing.assert_close(both.keys, second.keys, **NEAR)
    torch.testing.assert_close(both.values, second.values, **NEAR)


@pytest.mark.parametrize("name", EDITS)
def test_the_baselines(tiny, prefilled, name):
    edits = EDITS[name]
    n = len(applied(prefilled.ids, edits))
    exact, rows = edited(tiny, prefilled, *edits, update="recompute")
    assert rows == n
    prefix, rows = edited(tiny, prefilled, *edits, update="prefix")
    assert rows == n - edits[0].begin
    for each in ("keys", "values", "logits"):
        torch.testing.assert_close(getattr(prefix, each), getattr(exact, each), **NEAR)
    stale, rows = edited(tiny, prefilled, *edits, update="stale")
    assert stale is prefilled and rows == 0
    conflict, rows = edited(tiny, prefilled, *edits, update="conflict")
    rotated, same = edited(tiny, prefilled, *edits)
    behind = T - edits[-1].end - 1
    assert rows == same
    assert torch.equal(conflict.keys[:, :, -1 - behind : -1], prefilled.keys[:, :, -1 - behind : -1])
    shift = sum(edit.shift for edit in edits)
    assert (shift == 0) == torch.allclose(conflict.keys[0], rotated.keys[0], **NEAR)


def test_the_edited_context_goes_on_behind_its_new_length(tiny, ids, prefilled):
    system = PIE("prefix").build(tiny, Inputs())
    assert isinstance(system, CacheEditor)
    edits = EDITS["two_places"]
    context, seconds, _ = system.edit(prefilled, edits)
    new = applied(prefilled.ids, edits)
    true = ids[T:]
    exact = tiny.decoder.forward(torch.cat((new, true))[None], tiny.decoder.cache(200))[0]
    assert len(context) == len(new) and seconds > 0
    torch.testing.assert_close(context.extend(true), exact[len(new) :], atol=2e-2, rtol=2e-2)


def test_what_cannot_be_applied_is_said(tiny, prefilled):
    none = torch.empty(0, dtype=torch.int64)
    with pytest.raises(UserError, match="left to right"):
        edited(tiny, prefilled, Edit(9, 12, none), Edit(10, 14, none))
    with pytest.raises(UserError, match="at least one token"):
        edited(tiny, prefilled, Edit(0, T, none))
    with pytest.raises(UserError, match="forget"):
        PIE("forget")


OLD = "".join(f"value_{n} = {n}\n" for n in range(80))


def test_the_benchmark_compares_every_point_with_a_context_run_anew(tiny, tmp_path):
    lines = OLD.splitlines(keepends=True)
    for version, text in (("old", OLD), ("new", "".join([*lines[:40], "inserted = True\n", *lines[40:]]))):
        (tmp_path / version).mkdir()
        (tmp_path / version / "module.py").write_text(text)
    benchmark = ContextEdits("float32", False, 2, 12, 6)
    (item,) = benchmark.items({"django_4_2_1": tmp_path / "old", "django_5_2": tmp_path / "new"}, 0)
    assert item.category == "insertion"

    class Bench:
        points = ("rotate", "conflict", "stale", "prefix", "recompute")

        def model(self, dtype):
            return tiny

        def system(self, point, dtype):
            return PIE(point).build(tiny, Inputs())

    found = {(point, name): value for point, name, value, _ in benchmark.measure(item, Bench()).numbers}
    for point in ("prefix", "recompute"):
        assert found[point, "divergence"] < 1e-3 * found[point, "scored"]
        assert found[point, "key_cosine"] == pytest.approx(found[point, "compared"], rel=1e-3)
    assert found["rotate", "key_cosine"] > found["conflict", "key_cosine"]
    assert found["stale", "rows"] == 0 < found["rotate", "rows"] < found["prefix", "rows"] < found["recompute", "rows"]
    assert {found[point, "exact_match"] for point in Bench.points} <= {0.0, 1.0}
