"""The arrays of a suffix tree and the compiled loops over them (see `suffix_tree` for what they mean).

Nodes lie in one array of records; the root is number 0, and as it is nobody's child, 0 also stands for no node.  The
children of all nodes are in one hash table.  Siblings form a list by falling count, in which every run of equal
count (a group) knows its ends, so that a count changes in constant time.  All compiled code is in this one file,
because a cached function is compiled again only when its own file changes.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

NODE = np.dtype([(field, np.int32) for field in (
    "count",                        # occurrences of the path from the root to here
    "parent", "token", "length",    # the node's run of tokens: its first, and how many
    "start",                        # where the run stands in the text
    "first", "last",                # children of the largest and the smallest count
    "next", "previous", "group",    # siblings by falling count, and the run of equal count
)])  # fmt: skip
GROUP = np.dtype([("head", np.int32), ("tail", np.int32)])


class Store(NamedTuple):
    """The arrays of a tree: ``free`` holds the first free node and the first free group (chained by next, head)."""

    nodes: np.ndarray
    groups: np.ndarray
    table: np.ndarray
    text: np.ndarray
    free: np.ndarray


compiled = numba.njit(cache=True)


# Sequences.


@compiled
def extend(t, ends, begin, length, tokens):
    """Append tokens to the sequence of ``length`` tokens at ``begin``: every suffix shorter than D grows."""
    depth = len(ends)
    for n in range(len(tokens)):
        at = length + n
        t.text[begin + at] = tokens[n]
        t.nodes[0].count += 1
        ends[at % depth] = 0  # the empty suffix ends at the root
        place = max(0, at - depth + 1) % depth
        for _ in range(min(at + 1, depth)):
            ends[place] = _grow_suffix(t, ends[place], begin + at)
            place = place + 1 if place + 1 < depth else 0


@compiled
def _grow_suffix(t, node, at):
    """The suffix that ends at ``node`` goes on with the token at ``at`` of the text; returns where it ends then."""
    nodes, token = t.nodes, t.text[at]
    child = _find(t, node, token)
    if child == 0:
        if node != 0 and nodes[node].count == 1:  # a leaf of this suffix alone
            nodes[node].length += 1
            nodes[node].start = at + 1 - nodes[node].length
            return node
        child = _new(t, node, token, at)
        _put(t, child)
        _link(t, child, nodes[node].last, 0)
        _join(t, child)
        return child
    if node != 0 and nodes[node].count == nodes[child].count + 1:  # what else comes by here goes to the child as well
        length = nodes[node].length + 1
        if nodes[child].length == 1:
            nodes[child].count += 1
            _absorb(t, node, child, at + 1 - length, length)
            return child
        nodes[node].length, nodes[node].start = length, at + 1 - length
        _drop(t, child)
        _behead(t, child)
        _put(t, child)
        return node
    if nodes[child].length > 1:
        whole = child
        child = _new(t, node, token, at)
        nodes[child].count = nodes[whole].count
        _take_place(t, whole, child)
        _behead(t, whole)
        nodes[whole].parent = child
        _put(t, whole)
        _link(t, whole, 0, 0)
        _join(t, whole)
    _count_up(t, child)
    return child


@compiled
def find_ends(t, ends, begin, length):
    """The nodes at which the suffixes shorter than D of a sequence end."""
    for p in range(max(0, length - len(ends) + 1), length):
        ends[p % len(ends)] = match(t, t.text[begin : begin + length], p)[0]


@compiled
def remove(t, begin, length):
    """Take every suffix of a sequence off the counts."""
    nodes = t.nodes
    for p in range(length):
        node, at = 0, p
        nodes[0].count -= 1
        while at < length:
            child = _find(t, node, t.text[begin + at])
            if child == 0:
                break
            if nodes[child].count == 1:
                _delete(t, child)
                break
            _count_down(t, child)
            at += nodes[child].length
            node = child
        child = nodes[node].first
        if node != 0 and child != 0 and nodes[node].count == nodes[child].count:
            length_of_both = nodes[node].length + nodes[child].length
            _absorb(t, node, child, nodes[child].start - nodes[node].length, length_of_both)


@compiled
def refer(t, begin, length):
    """Let the nodes of all suffixes of a sequence refer to its text."""
    for p in range(length):
        node, at = 0, p
        while at < length:
            node = _find(t, node, t.text[begin + at])
            if node == 0:
                break
            t.nodes[node].start = begin + at
            at += t.nodes[node].length


# Nodes.


@compiled
def _new(t, parent, token, at):
    """A node of one token that occurred once."""
    node = t.free[0]
    t.free[0] = t.nodes[node].next
    new = t.nodes[node]
    new.count, new.parent, new.token, new.length, new.start = 1, parent, token, 1, at
    new.first, new.last, new.next, new.previous, new.group = 0, 0, 0, 0, 0
    return node


@compiled
def _free(t, node):
    t.nodes[node].next = t.free[0]
    t.free[0] = node


@compiled
def _behead(t, node):
    """The first token of a node's run goes to the node above; it is out of the table meanwhile."""
    nodes = t.nodes
    nodes[node].length -= 1
    nodes[node].start += 1
    nodes[node].token = t.text[nodes[node].start]


@compiled
def _absorb(t, node, child, start, length):
    """An only child takes over the run and the place of its parent."""
    _drop(t, child)
    _leave(t, child)
    t.nodes[child].start, t.nodes[child].length = start, length
    _take_place(t, node, child)
    _free(t, node)


@compiled
def _take_place(t, old, new):
    """``new`` stands where ``old`` stood: parent, siblings, group and table."""
    a, b = t.nodes[old], t.nodes[new]
    t.table[_slot_of(t, old)] = new
    b.parent, b.token, b.group = a.parent, a.token, a.group
    _link(t, new, a.previous, a.next)
    if t.groups[a.group].head == old:
        t.groups[a.group].head = new
    if t.groups[a.group].tail == old:
        t.groups[a.group].tail = new


@compiled
def _delete(t, node):
    """Remove a node that occurred once, and with it all below."""
    nodes = t.nodes
    _unlink(t, node)
    while node != 0:
        below = nodes[node].first
        _drop(t, node)
        _leave(t, node)
        _free(t, node)
        node = below


# Siblings: by falling count; a node that counts one more goes in front of the run that its left neighbour is in, and
# one that counts one less behind its own run, as in the official code.


@compiled
def _count_up(t, node):
    nodes, before = t.nodes, t.nodes[node].previous
    _leave(t, node)
    nodes[node].count += 1
    if before != 0 and nodes[before].count <= nodes[node].count:
        head = t.groups[nodes[before].group].head
        _unlink(t, node)
        _link(t, node, nodes[head].previous, head)
    _join(t, node)


@compiled
def _count_down(t, node):
    nodes, tail = t.nodes, t.groups[t.nodes[node].group].tail
    _leave(t, node)
    nodes[node].count -= 1
    if tail != node:
        _unlink(t, node)
        _link(t, node, tail, nodes[tail].next)
    _join(t, node)


@compiled
def _link(t, node, before, behind):
    """Put a node between two siblings; 0 is the end of the list."""
    nodes, parent = t.nodes, t.nodes[node].parent
    nodes[node].previous, nodes[node].next = before, behind
    if before != 0:
        nodes[before].next = node
    else:
        nodes[parent].first = node
    if behind != 0:
        nodes[behind].previous = node
    else:
        nodes[parent].last = node


@compiled
def _unlink(t, node):
    nodes, parent = t.nodes, t.nodes[node].parent
    before, behind = nodes[node].previous, nodes[node].next
    if before != 0:
        nodes[before].next = behind
    else:
        nodes[parent].first = behind
    if behind != 0:
        nodes[behind].previous = before
    else:
        nodes[parent].last = before


@compiled
def _join(t, node):
    """Become one of the run of siblings of equal count, or the first of a new one."""
    nodes, groups = t.nodes, t.groups
    count, before, behind = nodes[node].count, nodes[node].previous, nodes[node].next
    if before != 0 and nodes[before].count == count:
        group = nodes[before].group
        if groups[group].tail == before:
            groups[group].tail = node
    elif behind != 0 and nodes[behind].count == count:
        group = nodes[behind].group
        groups[group].head = node
    else:
        group = t.free[1]
        t.free[1] = groups[group].head
        groups[group].head = groups[group].tail = node
    nodes[node].group = group


@compiled
def _leave(t, node):
    """Leave the run of siblings of equal count; called before the node moves."""
    nodes, groups, group = t.nodes, t.groups, t.nodes[node].group
    if groups[group].head == groups[group].tail:
        groups[group].head = t.free[1]
        t.free[1] = group
    elif groups[group].head == node:
        groups[group].head = nodes[node].next
    elif groups[group].tail == node:
        groups[group].tail = nodes[node].previous


# Children of all nodes: open addressing with linear probing, at most half full.


@compiled
def _slot(t, node, token):
    mixed = (np.int64(node) * 1000003 + np.int64(token)) * -7046029254386353131
    return (mixed >> 24) & (len(t.table) - 1)


@compiled
def _find(t, node, token):
    """The child of ``node`` whose run begins with ``token``, or 0."""
    nodes, slot = t.nodes, _slot(t, node, token)
    if nodes[node].first == 0:
        return nodes[node].first
    while True:
        child = t.table[slot]
        if child == 0 or nodes[child].parent == node and nodes[child].token == token:
            return child
        slot = (slot + 1) & (len(t.table) - 1)


@compiled
def _slot_of(t, node):
    slot = _slot(t, t.nodes[node].parent, t.nodes[node].token)
    while t.table[slot] != node:
        slot = (slot + 1) & (len(t.table) - 1)
    return slot


@compiled
def _put(t, node):
    slot = _slot(t, t.nodes[node].parent, t.nodes[node].token)
    while t.table[slot] != 0:
        slot = (slot + 1) & (len(t.table) - 1)
    t.table[slot] = node


@compiled
def _drop(t, node):
    """Take a node out; what it had kept from its own place moves up."""
    mask, gap = len(t.table) - 1, _slot_of(t, node)
    t.table[gap] = 0
    slot = (gap + 1) & mask
    while t.table[slot] != 0:
        other = t.table[slot]
        home = _slot(t, t.nodes[other].parent, t.nodes[other].token)
        if (slot - home) & mask >= (slot - gap) & mask:
            t.table[gap], t.table[slot] = other, 0
            gap = slot
        slot = (slot + 1) & mask


@compiled
def fill_table(t, old):
    """Put the nodes of another table into this one."""
    for node in old:
        if node != 0:
            _put(t, node)


# Drafts.


@compiled
def match(t, tokens, begin):
    """Node and place in its run at which ``tokens[begin:]`` ends; node 0 if it does not occur."""
    node, used = 0, 0
    for n in range(begin, len(tokens)):
        if used == t.nodes[node].length:
            node, used = _find(t, node, tokens[n]), 0
            if node == 0:
                return 0, 0
        elif t.text[t.nodes[node].start + used] != tokens[n]:
            return 0, 0
        used += 1
    return node, used


@compiled
def speculate(t, context, limit, alpha, offset, min_prob, as_tree):
    """The draft of the best match; single precision throughout, as in the official code, so that ties fall alike."""
    best, best_score, best_match = _line(t, 0, 0, 0, min_prob), np.float32(0), 0
    for m in range(1, len(context)):
        node, used = match(t, context, len(context) - m)
        if node == 0:
            break
        budget = min(limit, max(int(np.float32(m) * alpha + offset + 1e-6), 0))
        draft = _tree(t, node, used, budget, min_prob) if as_tree else _line(t, node, used, budget, min_prob)
        score = np.float32(0)
        for prob in draft[2]:
            score += prob
        if score >= best_score:
            best, best_score, best_match = draft, score, m
    return best[0], best[1], best[2], best_score, best_match


@compiled
def _line(t, node, used, budget, min_prob):
    """The most frequent continuation."""
    nodes, n, prob = t.nodes, 0, np.float32(1)
    tokens, parents = np.empty(budget, np.int32), np.empty(budget, np.int32)
    probs = np.empty(budget, np.float32)
    while n < budget and prob >= min_prob:
        if used < nodes[node].length:
            tokens[n], parents[n], probs[n] = t.text[nodes[node].start + used], n - 1, prob
            n, used = n + 1, used + 1
        else:
            child = nodes[node].first
            if child == 0:
                break
            prob *= np.float32(nodes[child].count) / np.float32(nodes[node].count)
            node, used = child, 0
    return tokens[:n], parents[:n], probs[:n]


@compiled
def _tree(t, node, used, budget, min_prob):
    """The most probable tokens, best first; a heap holds (prob, node, place in its run, token before)."""
    nodes, n = t.nodes, 0
    tokens, parents = np.empty(budget, np.int32), np.empty(budget, np.int32)
    probs = np.empty(budget, np.float32)
    heap = [(np.float32(1), np.int64(node), np.int64(used), np.int64(-1))]
    while n < budget and len(heap) > 0:
        prob, node, used, parent = _pop(heap)
        if used < nodes[node].length:
            tokens[n], parents[n], probs[n] = t.text[nodes[node].start + used], parent, prob
            _push(heap, (prob, node, used + 1, np.int64(n)))
            n += 1
        else:
            child = nodes[node].first
            while child != 0:
                less = prob * np.float32(nodes[child].count) / np.float32(nodes[node].count)
                if less < min_prob:
                    break
                _push(heap, (less, np.int64(child), np.int64(0), parent))
                child = nodes[child].next
    return tokens[:n], parents[:n], probs[:n]


@compiled
def _push(heap, item):
    heap.append(item)
    _rise(heap, len(heap) - 1, item)


@compiled
def _pop(heap):
    """The most probable item; among equals the one that ``std::priority_queue`` gives, so that drafts are the same."""
    top, item, hole = heap[0], heap.pop(), 0
    n = len(heap)
    while 2 * hole + 1 < n:
        child = 2 * hole + 2
        if child == n or heap[child][0] < heap[child - 1][0]:
            child -= 1
        heap[hole] = heap[child]
        hole = child
    if n > 0:
        _rise(heap, hole, item)
    return top


@compiled
def _rise(heap, hole, item):
    while hole > 0 and heap[(hole - 1) // 2][0] < item[0]:
        heap[hole] = heap[(hole - 1) // 2]
        hole = (hole - 1) // 2
    heap[hole] = item
