"""APE (Yang et al., ICLR 2025, arXiv 2502.05431): contexts read side by side, with repaired attention.

    prefix        positions 0 .. P-1, run once and shared
    context C_i   run behind the prefix alone, at positions P .. P+|C_i|-1: all contexts stand at the same place
    query, answer from position P + max |C_i| on

    context part  z_j = q.k_j / (sqrt(d) T)     o_C = softmax(z) V_C    l_C = T S logsumexp(z)
    other part    z_j = q.k_j / sqrt(d)         o_O = softmax(z) V_O    l_O = logsumexp(z)
    output        softmax([l_C, l_O]) . [o_C, o_O]

Where code and paper name the scale differently this follows both: the log-sum-exp at temperature T is multiplied by
T S ("S*T as the factor").  Nothing is rotated again, so that a context's keys and values can be kept and reused in any
company; longer contexts leave gaps behind shorter ones, by design.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.held import Context, Held
from parsimony.models.clock import now
from parsimony.models.decoder import Decoder
from parsimony.models.language import Language

READINGS = ("shared", "duplicated", "sequential", "none")
GRID = tuple(n / 10 for n in range(10, 0, -1))
"""Values of T, and of S T, that are tried: 1.0, 0.9, ..., 0.1."""

Entries = tuple[Tensor, Tensor]
"""Rotated keys and values [L, H, n, d] of n tokens."""


class APE:
    """Adaptive parallel encoding, and what it is compared with.

    Parameters
    ----------
    temperature, scale : float
        T and S; 1 and 1 leave attention as it is.
    reading : {"shared", "duplicated", "sequential", "none"}
        "shared" is APE.  "duplicated" is plain parallel reading: every context comes with a prefix of its own, and
        all prefixes are seen.  "sequential" reads one after the other, "none" reads the prefix alone.
    """

    def __init__(self, temperature: float = 0.9, scale: float = 0.9, reading: str = "shared"):
        if reading not in READINGS or not (temperature > 0 and scale > 0):
            raise UserError(
                f"ape: reading {reading!r} is not one of {', '.join(READINGS)}, or temperature {temperature} or scale "
                f"{scale} is not positive; mend its params"
            )
        self.temperature, self.scale, self.reading = temperature, scale, reading

    def build(self, model: Language, inputs: Inputs) -> Reader:
        """The system."""
        return Reader(model.decoder, self)


class Reading(Context):
    """A context that was read; several tokens, such as a question, go on from it in one pass.

    It has no last token that all that follows could come from, so its logits are zero until it has been extended.

    Parameters
    ----------
    layers : list of Held
        Prefix, contexts and what comes behind them, in this order.
    length : int
        Position of the next token.
    inside : slice
        The entries that are context: attention on them has its own temperature and scale.
    rows, pairs : int
        Work of reading: tokens that the network ran, and pairs of a query and a key that attention compared, for
        one head and layer.
    """

    def __init__(self, decoder: Decoder, layers: list[Held], length: int, inside: slice, T: float, S: float):
        super().__init__(decoder, layers, length, torch.zeros(decoder.config.vocabulary, device=decoder.device))
        self.inside, self.T, self.S = inside, T, S
        self.rows = self.pairs = 0

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        held, new = self.layers[layer], keys.shape[2]
        for key, value in zip(keys[0].unbind(1), values[0].unbind(1), strict=True):
            held.append(key, value)
        scores = q[0] @ held.keys.to(q.dtype).mT / q.shape[-1] ** 0.5  # [H, R new, n]
        if mask is not None:  # of the entries there may be more than positions; only the new ones are not all seen
            scores[..., -new:] += mask[:, -new:]
        return (two_part_weights(scores, self.inside, self.T, self.S) @ held.values.to(q.dtype))[None]

    def extend(self, ids: Tensor) -> Tensor:
        """Go on with tokens ([n] int64); logits [n, V] behind each of them."""
        if not len(ids):
            return self.logits.new_zeros(0, len(self.logits))
        logits = self.decoder.forward(ids[None], self)[0]
        self.logits = logits[-1]
        return logits


class Reader:
    """The system: reads contexts behind a prefix."""

    def __init__(self, decoder: Decoder, method: APE):
        self.decoder, self.method = decoder, method

    def read(self, prefix_ids: Tensor, contexts: list[Tensor]) -> tuple[Reading, float]:
        """A context that goes on from all of them ([n] int64 each, empty ones allowed), and the seconds that it took.

        Raises
        ------
        UserError
            For an empty prefix: its tokens are the sink that all contexts share.
        """
        if not len(prefix_ids):
            raise UserError("parallel reading needs a prefix of at least one token, such as two line breaks; add one")
        began, none = now(self.decoder.device), prefix_ids[:0]
        contexts = {"sequential": [torch.cat((none, *contexts))], "none": []}.get(self.method.reading, contexts)
        contexts = [ids for ids in contexts if len(ids)]
        with torch.inference_mode():
            prefix = self.encode(none, [prefix_ids])[0]
            found = self.join(prefix, self.encode(prefix_ids, contexts, prefix))
        P, copies = len(prefix_ids), self.method.reading == "duplicated"
        found.rows = P + sum(map(len, contexts)) + copies * P * max(len(contexts) - 1, 0)
        found.pairs = _pairs(0, P) * (max(len(contexts), 1) if copies else 1)
        found.pairs += sum(_pairs(P, len(ids)) for ids in contexts)
        return found, now(self.decoder.device) - began

    def encode(self, prefix_ids: Tensor, contexts: list[Tensor], prefix: Entries | None = None) -> list[Entries]:
        """Keys and values of each context behind the same prefix (which may be given), batched with right padding.

        They depend on prefix and context alone, and may be kept.
        """
        if not contexts:
            return []
        P, n, longest = len(prefix_ids), len(contexts), max(map(len, contexts))
        cache = self.decoder.cache(P + longest, n)
        if P:
            prefix = prefix or self.encode(prefix_ids[:0], [prefix_ids])[0]
            cache.note_positions(torch.arange(P).expand(n, -1))
            for layer, (keys, values) in enumerate(zip(*prefix, strict=True)):
                cache.write(layer, keys.expand(n, -1, -1, -1), values.expand(n, -1, -1, -1))
            cache.in_order = P
        lengths = torch.tensor([len(ids) for ids in contexts])
        ids = torch.nn.utils.rnn.pad_sequence(contexts, batch_first=True)  # [n, longest]
        steps = torch.arange(longest)
        positions = (P + steps).where(steps < lengths[:, None], -1)  # nobody sees the padding, which stands at -1
        for piece, places in zip(ids.split(512, 1), positions.split(512, 1), strict=True):
            self.decoder.forward(piece, cache, positions=places, want="none")
        data = cache.data[:, :, :, :, P:]
        return [tuple(data[:, :, at, :, : len(ids)]) for at, ids in enumerate(contexts)]

    def join(self, prefix: Entries, contexts: list[Entries]) -> Reading:
        """Prefix and contexts, encoded or kept from before, as one context."""
        m, P = self.method, prefix[0].shape[2]
        parts = [prefix, *contexts]
        if m.reading == "duplicated":  # a copy of the prefix before each context, and all of it is context
            parts = [part for one in contexts for part in (prefix, one)] or parts
        keys, values = (torch.cat(kind, 2) for kind in zip(*parts, strict=True))  # [L, H, P + sum |C_i|, d]
        T, S = (m.temperature, m.scale) if m.reading == "shared" else (1.0, 1.0)
        layers = [Held(*layer) for layer in zip(keys, values, strict=True)]
        length = P + max((entries[0].shape[2] for entries in contexts), default=0)
        return Reading(self.decoder, layers, length, slice(P, keys.shape[2]), T, S)


def two_part_weights(scores: Tensor, inside: slice, T: float, S: float) -> Tensor:
    """Attention weights [..., n] of the two parts merged by their log-sum-exps, from scores q.k / sqrt(d)."""
    a, b = inside.start, inside.stop
    if a == b:
        return scores.softmax(-1)
    z, other = scores[..., a:b] / T, torch.cat((scores[..., :a], scores[..., b:]), -1)
    masses = torch.stack((T * S * z.logsumexp(-1), other.logsumexp(-1)), -1).softmax(-1)  # [..., 2]
    context, other = z.softmax(-1) * masses[..., :1], other.softmax(-1) * masses[..., 1:]
    return torch.cat((other[..., :a], context, other[..., a:]), -1)


def search(loss: Callable[[float, float], float]) -> tuple[float, float]:
    """T and S by the paper's greedy search: the best T with S T = T, then with that T the best S T, both on `GRID`.

    Parameters
    ----------
    loss : callable (T, S) -> float
        On held-out items, such as the mean negative log-likelihood of their answers; the first of equals wins.
    """
    T = min(GRID, key=lambda T: loss(T, 1.0))
    factor = min(GRID, key=lambda factor: loss(T, factor / T))
    return T, factor / T


def _pairs(before: int, count: int) -> int:
    """Pairs that causal attention compares for ``count`` tokens behind ``before`` others."""
    return count * before + count * (count + 1) // 2
