"""The suffix tree against a plain trie, against counting by hand, and draft by draft against the official C++ tree."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.errors import UserError
from parsimony.methods.autoregressive.suffix_tree import SuffixTree

f32 = np.float32


class Trie:
    """All substrings up to ``depth``, one node a token, children in a list: slow and plain."""

    def __init__(self, depth):
        self.depth, self.texts, self.root = depth, {}, {"token": None, "count": 0, "children": []}

    def extend(self, key, tokens):
        text = self.texts.setdefault(key, [])
        for token in tokens:
            text.append(token)
            for p in range(max(0, len(text) - self.depth), len(text)):
                *path, last = text[p:]
                above = self.find(path)
                if child := self.child(above, last):
                    self.reorder(above["children"], child, +1)
                else:
                    above["children"].append({"token": last, "count": 1, "children": []})

    def remove(self, key):
        text = self.texts.pop(key)
        for p in range(len(text)):
            node = self.root
            for token in text[p : p + self.depth]:
                child = self.child(node, token)
                self.reorder(node["children"], child, -1)
                if not child["count"]:
                    node["children"].remove(child)
                node = child

    @staticmethod
    def reorder(children, child, change):
        """One more: in front of those that count as much as the left neighbour; one less: behind its equals."""
        at = children.index(child)
        if change > 0:
            if at and children[at - 1]["count"] <= child["count"] + 1:
                equal = children[at - 1]["count"]
                at = next(n for n, other in enumerate(children) if other["count"] == equal)
        else:
            at = max(n for n, other in enumerate(children) if other["count"] == child["count"])
        children.remove(child)
        children.insert(at, child)
        child["count"] += change

    @staticmethod
    def child(node, token):
        return next((c for c in node["children"] if c["token"] == token), None)

    def find(self, tokens):
        node = self.root
        for token in tokens:
            node = node and self.child(node, token)
        return node

    @staticmethod
    def onwards(prob, node, min_prob, tree):
        """The children that may be drafted; single precision, multiplied in the order of the official code."""
        out = []
        for child in node["children"] if tree else node["children"][:1]:
            here, above, less = f32(child["count"]), f32(node["count"]), prob
            if here < above:
                less = prob * here / above if tree else prob * (here / above)
            if less >= f32(min_prob):
                out.append((less, child))
        return out

    def speculate(self, context, limit, alpha, offset, min_prob, tree):
        best, best_score, match = ([], []), f32(0), 0
        context = context[-self.depth :]
        for m in range(1, len(context)):
            node = self.find(context[-m:])
            if node is None:
                break
            budget = min(limit, int(np.floor(f32(m) * f32(alpha) + f32(offset) + 1e-6)))
            tokens, probs, waiting = [], [], self.onwards(f32(1), node, min_prob, tree)
            while waiting and len(tokens) < budget:
                prob, node = waiting.pop(max(range(len(waiting)), key=lambda n: waiting[n][0]))
                tokens.append(node["token"])
                probs.append(prob)
                waiting += self.onwards(prob, node, min_prob, tree)
            score = f32(0)
            for prob in probs:
                score += prob
            if score >= best_score:
                best, best_score, match = (tokens, probs), score, m
        return *best, best_score, match


class Arena:
    """Pairs of trees that live through the same things."""

    def __init__(self, rng, depth, vocabulary, others):
        self.rng, self.vocabulary = rng, vocabulary
        self.tree, self.others, self.texts, self.next = SuffixTree(depth), others, {}, 0

    def live(self, steps):
        for _ in range(steps):
            if self.texts and self.rng.random() < 0.2:
                key = int(self.rng.choice(list(self.texts)))
                del self.texts[key]
                for tree in (self.tree, *self.others):
                    tree.remove(key)
                continue
            if not self.texts or self.rng.random() < 0.4:
                self.next += 1
            key = int(self.rng.choice([*self.texts, self.next]))
            tokens = self.rng.integers(0, self.vocabulary, int(self.rng.integers(0, 16)))
            if self.rng.random() < 0.3:
                tokens = np.tile(tokens[:3], 5)
            self.texts[key] = self.texts.get(key, []) + tokens.tolist()
            for tree in (self.tree, *self.others):
                tree.extend(key, tokens.tolist())
            if self.rng.random() < 0.1:
                self.tree._compact()

    def context(self):
        if self.texts and self.rng.random() < 0.7:
            text = self.texts[int(self.rng.choice(list(self.texts)))]
            return text[: int(self.rng.integers(0, len(text) + 1))]
        return self.rng.integers(0, self.vocabulary, int(self.rng.integers(0, 14))).tolist()

    def rule(self):
        pick = self.rng.choice
        return {
            "limit": int(self.rng.integers(0, 14)), "alpha": float(pick([0, 0.5, 1, 2, 4])),
            "offset": float(pick([0, 1, 2.5])), "min_prob": float(pick([0.05, 0.1, 0.3])),
        }  # fmt: skip


def substrings(texts, depth):
    return {tuple(t[p : p + n]) for t in texts for p in range(len(t)) for n in range(1, depth + 1) if p + n <= len(t)}


def occurrences(texts, wanted):
    n = len(wanted)
    return sum(tuple(text[p : p + n]) == tuple(wanted) for text in texts for p in range(len(text) - n + 1))


SEEDS = st.integers(0, 10**6)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, depth=st.integers(1, 9), vocabulary=st.integers(1, 5))
def test_counts_are_those_of_all_substrings(seed, depth, vocabulary):
    """Through growth in turns, removal and moves of the text; substrings that are gone count 0."""
    arena = Arena(np.random.default_rng(seed), depth, vocabulary, [])
    gone = set()
    for _ in range(4):
        arena.live(6)
        texts = list(arena.texts.values())
        there = substrings(texts, depth)
        for wanted in there | gone:
            assert arena.tree.count(wanted) == occurrences(texts, wanted)
        gone |= there
        assert list(arena.tree) == list(arena.texts)
        assert all(arena.tree[key].tolist() == text for key, text in arena.texts.items())
        check_structure(arena.tree)


def check_structure(tree):
    """Children count no more than their parent, stand by falling count, and nothing leaks."""
    nodes, todo, seen, groups = tree._store.nodes, [0], 0, set()
    while todo:
        node = todo.pop()
        seen += 1
        children, child = [], int(nodes[node]["first"])
        while child:
            assert nodes[child]["parent"] == node and nodes[child]["length"] >= 1
            groups.add(int(nodes[child]["group"]))
            children.append(child)
            child = int(nodes[child]["next"])
        counts = [int(nodes[child]["count"]) for child in children]
        assert counts == sorted(counts, reverse=True) and all(counts)
        assert sum(counts) <= nodes[node]["count"]
        if node and len(counts) == 1:
            assert counts[0] < nodes[node]["count"]  # else the two would be one
        todo += children
    assert seen <= 2 * tree.live + 1
    for array, start, field, used in (
        (nodes, tree._store.free[0], "next", seen), (tree._store.groups, tree._store.free[1], "head", len(groups) + 1)
    ):  # fmt: skip
        free, at = 0, int(start)
        while at:
            free, at = free + 1, int(array[at][field])
        assert free == len(array) - used
    assert (tree._store.table != 0).sum() == seen - 1


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, depth=st.integers(1, 8))
def test_removal_is_as_if_it_had_never_been_and_order_does_not_count(seed, depth):
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, 3, int(rng.integers(0, 30))).tolist() for _ in range(4)]
    removed, never, other_way = SuffixTree(depth), SuffixTree(depth), SuffixTree(depth)
    for key, text in enumerate(texts):
        removed.extend(key, text)
    removed.remove(1)
    for key in (0, 2, 3):
        never.extend(key, texts[key])
    for key in (3, 0, 2):
        for token in texts[key]:
            other_way.extend(key, [token])
    for wanted in substrings(texts, depth):
        assert removed.count(wanted) == never.count(wanted) == other_way.count(wanted)
    assert removed.live == never.live == other_way.live
    for key in (0, 2, 3):
        removed.remove(key)
    assert len(removed) == removed.live == 0 and not (removed._store.table != 0).any()


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, depth=st.integers(1, 9), vocabulary=st.integers(1, 5))
def test_drafts_are_those_of_the_trie(seed, depth, vocabulary):
    trie = Trie(depth)
    arena = Arena(np.random.default_rng(seed), depth, vocabulary, [trie])
    for _ in range(3):
        arena.live(6)
        for _ in range(4):
            context, rule = arena.context(), arena.rule()
            line = arena.tree.speculate(context, **rule)
            tokens, probs, score, match = trie.speculate(context, **rule, tree=False)
            assert line.tokens.tolist() == tokens and line.probs.tolist() == [float(p) for p in probs]
            assert line.score == score and line.match == match
            tree = arena.tree.speculate(context, **rule, tree=True)
            _, probs, score, match = trie.speculate(context, **rule, tree=True)
            assert tree.probs.tolist() == [float(p) for p in probs]  # which of equals comes first is not compared
            assert tree.score == score and tree.match == match


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, depth=st.integers(2, 12), as_tree=st.booleans())
def test_drafts_keep_budget_and_order_and_go_on_like_the_texts(seed, depth, as_tree):
    arena = Arena(np.random.default_rng(seed), depth, 3, [])
    arena.live(12)
    for _ in range(10):
        context, rule = arena.context(), arena.rule()
        tokens, parents, probs, score, match = arena.tree.speculate(context, **rule, tree=as_tree)
        assert len(tokens) <= min(rule["limit"], int(rule["alpha"] * match + rule["offset"] + 1e-6))
        assert match < max(len(context), 1) and match < depth
        assert (parents < np.arange(len(tokens))).all() and (parents >= -1).all()
        assert (probs >= f32(rule["min_prob"])).all() and (probs <= 1).all()
        assert score == pytest.approx(probs.sum(), rel=1e-5)
        base = context[len(context) - match :]
        for n, parent in enumerate(parents):
            assert probs[n] <= (probs[parent] if parent >= 0 else 1)
            path, at = [], n
            while at >= 0:
                path, at = [int(tokens[at]), *path], int(parents[at])
            assert arena.tree.count(base + path) > 0
            assert probs[n] == pytest.approx(arena.tree.count(base + path) / arena.tree.count(base), rel=1e-5)


def test_the_first_segment_is_certain_and_a_continuation_seen_once_is_a_coin():
    tree = SuffixTree(64)
    tree.extend(0, [1, 2, 3, 4, 5, 9, 1, 2, 3])
    draft = tree.speculate([9, 1, 2, 3], 10)
    assert draft.tokens.tolist() == [4, 5, 9] and draft.match == 3  # as long as the match
    assert draft.probs.tolist() == [0.5] * 3  # the other occurrence is the context itself
    tree.extend(1, [7, 1, 2, 3, 4, 5])
    other = SuffixTree(64)
    other.extend(0, [1, 2, 3, 4, 5, 9])
    assert other.speculate([8, 1, 2, 3], 10).probs.tolist() == [1.0] * 3


def test_no_draft_without_budget_or_behind_one_token():
    tree = SuffixTree(16)
    tree.extend(0, [1, 2, 3] * 9)
    assert not len(tree.speculate([1, 2, 3, 1, 2], 10, alpha=0).tokens)
    assert not len(tree.speculate([1, 2, 3, 1, 2], 0).tokens)
    assert not len(tree.speculate([1, 2, 3, 1, 2], -1).tokens)
    assert not len(tree.speculate([2], 10).tokens)  # a match is shorter than the context
    assert not len(tree.speculate([], 10).tokens)
    assert len(tree.speculate([3, 1], 10, alpha=0, offset=2).tokens) == 2


def test_equal_scores_go_to_the_longer_match():
    tree = SuffixTree(8)
    tree.extend(0, [5, 1, 2, 3, 4])
    assert tree.speculate([0, 5, 1, 2], 1).match == 3


@pytest.mark.parametrize("as_tree", [False, True])
def test_a_replay_is_accepted_in_ever_longer_pieces_up_to_the_cap(as_tree):
    text = np.random.default_rng(0).permutation(500).tolist()
    tree, pieces, at = SuffixTree(64), [], 2
    tree.extend(0, text)
    while at < 400:
        draft = tree.speculate(text[:at], 16, tree=as_tree).tokens.tolist()
        assert draft == text[at : at + len(draft)]
        pieces.append(len(draft))
        at += len(draft) + 1
    assert pieces[:4] == [1, 3, 7, 15] and set(pieces[4:]) == {16}


def test_a_depth_below_one_is_refused():
    with pytest.raises(UserError, match="depth of 1 or more"):
        SuffixTree(0)


class Official:
    """The C++ tree behind the same names."""

    def __init__(self, depth):
        from arctic_inference.suffix_decoding import _C

        self.depth, self.tree = depth, _C.SuffixTree(depth)

    def extend(self, key, tokens):
        self.tree.extend(key, tokens)

    def remove(self, key):
        self.tree.remove(key)

    def speculate(self, context, limit, alpha, offset, min_prob, tree):
        return self.tree.speculate(context[-self.depth :], limit, alpha, offset, min_prob, tree)


def assert_same(ours, theirs):
    assert ours.tokens.tolist() == theirs.token_ids
    assert ours.parents.tolist() == theirs.parents
    assert ours.probs.tolist() == theirs.probs
    assert ours.score == theirs.score and ours.match == theirs.match_len


@pytest.fixture
def official():
    why = "the official tree is not installed; `make oracles` builds it from the package arctic-inference"
    pytest.importorskip("arctic_inference.suffix_decoding._C", reason=why)
    return Official


@pytest.mark.parametrize("seed", range(40))
def test_drafts_are_those_of_the_official_tree(official, seed):
    """Tokens, parents, probabilities, score and match, to the last bit, lines and trees, through removals."""
    rng = np.random.default_rng(seed)
    depth = int(rng.integers(1, 12))
    theirs = official(depth)
    arena = Arena(rng, depth, int(rng.integers(1, 6)), [theirs])
    for _ in range(12):
        arena.live(5)
        for _ in range(8):
            context, rule, as_tree = arena.context(), arena.rule(), bool(rng.random() < 0.5)
            ours = arena.tree.speculate(context, **rule, tree=as_tree)
            assert_same(ours, theirs.speculate(context, **rule, tree=as_tree))


def test_drafts_on_real_text_are_those_of_the_official_tree(official, root):
    """Every file of the package by words, online, with the published defaults; the oldest file leaves each time."""
    ours, theirs, words, drafted = SuffixTree(64), official(64), {}, 0
    rule = {"limit": 32, "alpha": 1.0, "offset": 0.0, "min_prob": 0.1}
    for key, file in enumerate(sorted(root.glob("src/parsimony/**/*.py"))):
        text = [words.setdefault(word, len(words)) for word in re.findall(r"\w+|\s+|\W", file.read_text())]
        for at in range(0, len(text), 7):
            for tree in (ours, theirs):
                tree.extend(key, text[at : at + 7])
            for as_tree in (False, True):
                mine = ours.speculate(text[: at + 7], **rule, tree=as_tree)
                assert_same(mine, theirs.speculate(text[: at + 7], **rule, tree=as_tree))
                drafted += len(mine.tokens)
        if len(ours) > 20:
            oldest = next(iter(ours))
            for tree in (ours, theirs):
                tree.remove(oldest)
    assert drafted > 10_000
