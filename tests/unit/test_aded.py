"""ADED: the table and the searches against plain Python, and the invariants of its drafts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.methods.autoregressive import trigrams
from parsimony.methods.autoregressive.aded import FALLBACK, PREFIXES, TrigramDrafter, trie
from parsimony.methods.autoregressive.budget import Budget
from parsimony.methods.autoregressive.verify import VerifyLoop

RNG = np.random.default_rng(0)
TEXTS = st.lists(st.lists(st.integers(0, 5), max_size=40).map(lambda ids: np.array(ids, np.int64)), max_size=4)


def plain(table) -> dict[tuple[int, int], dict[int, float]]:
    """The table as a dict of dicts, successors in order."""
    out: dict = {}
    for bigram, token, weight in zip(*(column.tolist() for column in trigrams.contents(table)), strict=True):
        out.setdefault((bigram >> 32, bigram & 0xFFFFFFFF), {})[token] = weight
    return out


def random_table(seed: int, vocabulary: int = 300, size: int = 3000):
    """Trigrams over few tokens, with weights up to the cap, some of them certain to loop."""
    rng = np.random.default_rng(seed)
    few = rng.choice(vocabulary, 12, replace=False)
    found = np.unique(rng.choice(few, (size, 3)), axis=0)
    rng.shuffle(found)
    return trigrams.make((found[:, 0] << 32) | found[:, 1], found[:, 2], rng.uniform(0.01, 3, len(found)))


def empty_table():
    return trigrams.counted([], 12)


def wrong_table(tiny, prompt):
    """For every bigram of the greedy continuation, successors that are surely wrong, the end of a turn among them."""
    greedy = VerifyLoop(tiny).generate(prompt, 24, RNG).tokens.tolist()
    text = [*prompt.tolist(), *greedy]
    rows = [(u, v, w) for u, v, right in zip(text, text[1:], text[2:], strict=False) for w in (0, 7, 9) if w != right]
    found = np.unique(np.array(rows, np.int64).reshape(-1, 3), axis=0)
    return trigrams.make((found[:, 0] << 32) | found[:, 1], found[:, 2], np.full(len(found), 3.0))


def prompt_of(seed, length):
    return torch.from_numpy(np.random.default_rng(seed).integers(1, 300, length))


@settings(max_examples=50, deadline=None)
@given(texts=TEXTS, best=st.integers(1, 4))
def test_the_corpus_table_holds_relative_frequencies_of_the_best_successors(texts, best):
    counts: dict = {}
    for text in texts:
        for u, v, w in zip(text, text[1:], text[2:], strict=False):
            behind = counts.setdefault((int(u), int(v)), {})
            behind[int(w)] = behind.get(int(w), 0) + 1
    table = plain(trigrams.counted(texts, best))
    assert table.keys() == counts.keys()
    for bigram, behind in counts.items():
        ranked = sorted(behind, key=lambda w: (-behind[w], w))[:best]
        assert list(table[bigram]) == ranked
        for w in ranked:
            assert table[bigram][w] == pytest.approx(behind[w] / sum(behind.values()))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), texts=st.lists(st.lists(st.integers(0, 200), max_size=300), max_size=8))
def test_updates_add_up_to_the_cap_and_the_table_grows(seed, texts):
    table = random_table(seed, 200, 600)
    expected = plain(table)
    for text in texts * 3:
        table = trigrams.raised(table, np.array(text, np.int64), 0.4, 3.0)
        for u, v, w in zip(text, text[1:], text[2:], strict=False):
            behind = expected.setdefault((u, v), {})
            behind[w] = min(behind.get(w, 0.0) + 0.4, 3.0)
    found = plain(table)
    assert {bigram: list(behind) for bigram, behind in found.items()} == {b: list(x) for b, x in expected.items()}
    for bigram, behind in found.items():
        assert list(behind.values()) == pytest.approx(list(expected[bigram].values()), rel=1e-5)
        assert all(0 < weight <= 3 for weight in behind.values())
        for w in behind:
            share = behind[w] / sum(behind.values())
            assert trigrams.share(table, *bigram, w) == pytest.approx(share, rel=1e-5)


def searched(M, u, v, uniforms, published):
    """`trigrams.monte_carlo` in plain Python, on nodes that are prefixes: visits by prefix."""
    depth = uniforms.shape[1]
    visits, total, children = {(): 0}, {(): 0.0}, {}

    def state(path):
        return (u, v, *path)[-2:]

    for draw in uniforms:
        node, expanded = (), False
        path: tuple = ()
        while len(path) < depth - 1:
            behind = M.get(state(path), {})
            if expanded:
                if not behind:
                    break
                edges, rest = list(behind), float(np.sum(list(behind.values()))) * draw[len(path) + 1]
                at = 0
                while at < len(edges) - 1 and rest >= behind[edges[at]]:
                    rest -= behind[edges[at]]
                    at += 1
                path = (*path, edges[at])
                continue
            if not children.get(node):
                expanded = True
                children[node] = [(*node, w) for w in behind]
                for child in children[node]:
                    visits[child], total[child] = 0, 0.0
                if not behind:
                    break
                node = children[node][int(draw[0] * len(behind))]
            else:
                N = visits[node]

                def score(child, N=N, behind=behind):
                    n = visits[child]
                    if n == 0:
                        return math.inf
                    explore = 32 + math.log((N + 8 + 1) / 8)
                    return total[child] / n + explore * behind[child[-1]] * math.sqrt(N) / (1 + n)

                node = max(children[node], key=score)
            path = node
        value = 1.0
        for n in range(len(path)):
            x, y = state(path[:n])
            value += M.get((x, y), {}).get(y if published else path[n], 0.0)
        for n in range(len(node) + 1):
            visits[node[:n]] += 1
            total[node[:n]] += value
    return visits


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), published=st.booleans(), depth=st.integers(2, 5))
def test_the_tree_search_follows_the_rule(seed, published, depth):
    rng = np.random.default_rng(seed)
    table = random_table(seed, size=int(rng.integers(1, 800)))
    M = plain(table)
    u, v = list(M)[rng.integers(len(M))]
    uniforms = rng.random((60, depth))
    parent, token, visits = trigrams.monte_carlo(table, u, v, uniforms, published)
    prefixes = [()]
    for n in range(1, len(parent)):
        prefixes.append((*prefixes[parent[n]], int(token[n])))
    assert dict(zip(prefixes, visits.tolist(), strict=True)) == searched(M, u, v, uniforms, published)
    assert visits[0] == 60 and max(map(len, prefixes)) <= depth - 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_beam_wide_enough_finds_all_prefixes_and_their_products(seed):
    table = random_table(seed, size=60)
    M = plain(table)
    u, v = next(iter(M))
    parent, token, product = trigrams.beam(table, u, v, 10_000, 4)
    prefixes = [()]
    for n in range(1, len(parent)):
        prefixes.append((*prefixes[parent[n]], int(token[n])))
    expected = {(): 1.0}
    level = [()]
    for _ in range(3):
        level = [(*path, w) for path in level for w in M.get((u, v, *path)[-2:], {})]
        expected |= {path: expected[path[:-1]] * M[(u, v, *path[:-1])[-2:]][path[-1]] for path in level}
    assert dict(zip(prefixes, product, strict=True)) == pytest.approx(expected)
    parent, token, product = trigrams.beam(table, u, v, 2, 4)
    level = [0]
    for n in range(1, len(parent)):
        level.append(level[parent[n]] + 1)
    for depth in range(1, max(level)):  # only the two best of each level have children
        mine = [n for n in range(len(parent)) if level[n] == depth]
        best = sorted(mine, key=lambda n: -product[n])[:2]
        assert {parent[n] for n in range(1, len(parent)) if level[n] == depth + 1} <= set(best)


@given(
    paths=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple), max_size=24, unique=True),
    nodes=st.integers(1, 64),
)
def test_the_trie_keeps_parents_and_its_size(paths, nodes):
    rows = trie(paths, nodes)
    assert len(rows) == len(set(rows)) <= nodes
    assert all(len(path) == 1 or path[:-1] in rows[: rows.index(path)] for path in rows)
    assert all(any(path[: len(row)] == row for path in paths) for row in rows)
    if sum(len(set(path)) for path in paths) <= nodes:
        whole = {path[:n] for path in paths for n in range(1, len(path) + 1)}
        assert rows == sorted(whole, key=lambda path: (len(path), path))[:nodes]


def test_the_longest_paths_go_first():
    assert trie([(1, 2, 3), (4, 5), (6, 7, 8)], 5) == [(1,), (4,), (1, 2), (4, 5), (1, 2, 3)]


def drafts_of(drafter, texts, steps=4):
    out = []
    for seed, text in enumerate(texts):
        drafter.start(text[:-1], int(text[-1]), None)
        for n in range(steps):
            draft = drafter.propose(40)
            out.append((draft.tokens.tolist(), draft.tree.parents.tolist()))
            drafter.observe(draft.tokens, None, torch.tensor([0]), torch.tensor([(17 * n + seed) % 300]))
    return out


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), search=st.sampled_from(["monte_carlo", "beam"]), nodes=st.sampled_from([64, 16, 4]))
def test_drafts_are_small_shallow_trees_of_known_trigrams(seed, search, nodes):
    table = random_table(seed)
    M = plain(table)
    drafter = TrigramDrafter(table, update=False, search=search, nodes=nodes, seed=seed)
    u, v = list(M)[seed % len(M)]
    drafter.start(torch.tensor([1, u]), v, None)
    draft = drafter.propose(40)
    tree, tokens = draft.tree, [v, *draft.tokens.tolist()]
    assert 1 <= len(draft.tokens) <= nodes
    assert int(tree.depth.max()) <= 4
    for j in range(1, len(tokens)):
        up = int(tree.parents[j])
        assert up < j
        ancestors = {j}
        while up not in ancestors:
            ancestors.add(up)
            up = int(tree.parents[up])
        assert set(tree.sees[j].nonzero()[:, 0].tolist()) == ancestors | {0}
        before = [u] + [tokens[a] for a in sorted(ancestors | {0})]
        if tokens != [v, FALLBACK]:
            assert before[-1] in M[before[-3], before[-2]]
    assert (drafter.propose(2).tree.depth <= 2).all()
    assert not len(drafter.propose(0).tokens)


def test_the_draft_prefers_what_the_table_weighs_most():
    """One certain continuation among thin ones is drafted whole, extended to four tokens, by either search."""
    rows = [(5, n, n + 1) if n == 6 else (n - 1, n, n + 1) for n in range(6, 12)]
    rows += [(5, 6, w) for w in range(20, 40)]
    found = np.array(rows)
    weights = np.array([1.0] * 6 + [0.001] * 20)
    table = trigrams.make((found[:, 0] << 32) | found[:, 1], found[:, 2], weights)
    for search in ("monte_carlo", "beam"):
        drafter = TrigramDrafter(table, update=False, search=search)
        drafter.start(torch.tensor([4, 5]), 6, None)
        draft = drafter.propose(40)
        deepest = draft.tree.sees[int(draft.tree.depth.argmax())]
        assert draft.tokens[deepest.nonzero()[1:, 0] - 1].tolist() == [7, 8, 9, 10]


def test_an_unknown_bigram_drafts_the_fallback():
    drafter = TrigramDrafter(empty_table(), update=False)
    drafter.start(torch.tensor([3]), 4, None)
    assert drafter.propose(5).tokens.tolist() == [FALLBACK]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["random", "empty", "wrong"]), length=st.integers(1, 20))
def test_lossless_from_any_table(tiny, seed, kind, length):
    prompt = prompt_of(seed, length)
    table = {"random": lambda: random_table(seed), "empty": empty_table, "wrong": lambda: wrong_table(tiny, prompt)}
    greedy = VerifyLoop(tiny).generate(prompt, 24, RNG).tokens.tolist()
    for search in ("monte_carlo", "beam"):
        drafter = TrigramDrafter(table[kind](), search=search, seed=seed)
        ours = VerifyLoop(tiny, drafter).generate(prompt, 24, RNG)
        assert ours.tokens.tolist() == greedy
        cost = ours.cost
        assert cost.rows <= 65 * cost.passes
        assert all(1 <= gained <= 5 for gained in cost.accepted_per_pass)


def test_only_trigrams_that_occurred_change(tiny):
    drafter = TrigramDrafter(random_table(1))
    before, prompt = plain(drafter.table), prompt_of(5, 30)
    text = [*prompt.tolist(), *VerifyLoop(tiny, drafter).generate(prompt, 40, RNG).tokens.tolist()]
    after = plain(drafter.table)
    occurred = set(zip(text, text[1:], text[2:], strict=False))
    changed = {(*b, w) for b, x in after.items() for w, weight in x.items() if before.get(b, {}).get(w) != weight}
    assert changed and changed <= occurred
    assert all(w in after[b] for b, x in before.items() for w in x)
    assert all(0 < weight <= 3 for x in after.values() for weight in x.values())
    frozen = TrigramDrafter(random_table(1), update=False)
    VerifyLoop(tiny, frozen).generate(prompt, 40, RNG)
    assert plain(frozen.table) == before


def test_a_trigram_gains_while_it_stays_among_the_last_sixteen_tokens():
    drafter = TrigramDrafter(empty_table())
    drafter.start(torch.tensor([1, 2]), 3, None)
    for n in range(30):
        drafter.propose(10)
        drafter.observe(None, None, torch.tensor([0]), torch.tensor([100 + n]))
    assert plain(drafter.table)[1, 2][3] == pytest.approx(14 * 0.04)


def test_the_seed_decides_the_drafts():
    texts = [torch.tensor(bigram) for bigram in list(plain(random_table(3)))[:6]]
    first, again, other = (drafts_of(TrigramDrafter(random_table(3), seed=s), texts, steps=1) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_restored_table_drafts_as_the_saved_one_did():
    texts = [prompt_of(n, 12) for n in range(3)]
    drafter = TrigramDrafter(random_table(4), learns=True)
    drafts_of(drafter, texts)
    saved = drafter.state()
    expected = drafts_of(drafter, texts)
    drafter.restore(saved)
    assert drafts_of(drafter, texts) == expected
    drafter.restore({})
    assert plain(drafter.table) == plain(random_table(4)) and not drafter.counts.any()


def test_odds_fall_along_paths_and_follow_what_was_right():
    drafter = TrigramDrafter(random_table(6), update=False, learns=True)
    u, v = next(iter(plain(drafter.table)))
    drafter.start(torch.tensor([1, u]), v, None)
    first = 0
    for _ in range(50):
        draft = drafter.propose(40)
        first += int((draft.tree.depth == 1).sum())
        odds = torch.cat((torch.ones(1), draft.odds))
        assert (odds[1:] <= odds[draft.tree.parents[1:]]).all()
        right = int(draft.tokens[0])
        drafter.observe(None, None, torch.tensor([0]), torch.tensor([right]))
        drafter.recent = np.array([1, u, v])
    tried, hit = drafter.counts[0].sum(0)
    assert tried == first and hit == 50
    assert not drafter.counts[1:].any()  # deeper levels were never judged


def test_auto_verifies_what_pays(tiny):
    prompt = prompt_of(8, 20)
    greedy = VerifyLoop(tiny).generate(prompt, 30, RNG)
    for slope, largest in ((10.0, 0), (1e-6, 64)):
        budget = Budget(np.array([1, 81]), np.array([1.0, 1.0 + 80 * slope]))
        ours = VerifyLoop(tiny, TrigramDrafter(random_table(8), learns=True), budget).generate(prompt, 30, RNG)
        assert ours.tokens.tolist() == greedy.tokens.tolist()
        assert ours.cost.drafted <= largest * ours.cost.passes
        assert (ours.cost.drafted > 0) == (largest > 0)
    assert PREFIXES == 24
