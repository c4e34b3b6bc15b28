"""A context as a network computed it, and what a method holds of it: what attention sees, and how many bytes it is.

    prefilled = prefill(decoder, ids)               exact keys, values and queries of every layer
    layers = method.hold(prefilled)                 one `Held` a layer, compressed
    context = Context(decoder, prefilled, layers)   decodes token by token over them

All methods start from the same exact prefill, so a benchmark computes it once and compression is timed by itself.
What is held is held in half precision (16 bits an element, codes aside), whatever the network computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Cost, Generation
from parsimony.models.clock import now
from parsimony.models.decoder import Decoder
from parsimony.models.kv_cache import KVCache
from parsimony.models.language import Language

HALF = torch.float16


@dataclass
class Prefilled:
    """What a network computed for a context of one sequence.

    Attributes
    ----------
    ids : Tensor [T] int64
    keys, values : Tensor [L, H, T, d]
        Keys are rotated (position j is entry j).
    queries : Tensor [L, H, R, T, d]
        Rotated; R query heads share a key-value head.
    logits : Tensor [V]
        Behind the last token.
    """

    ids: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor
    logits: Tensor

    def __len__(self) -> int:
        """T."""
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values in half precision: what a method's bytes are compared with."""
        return 2 * self.keys.numel() * HALF.itemsize


class Recorder(KVCache):
    """A cache that keeps the queries too."""

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        self.queries[layer].append(q.view(*q.shape[1:2], -1, keys.shape[2], q.shape[3]))
        return super().attend(layer, q, keys, values, mask)


def prefill(decoder: Decoder, ids: Tensor) -> Prefilled:
    """Run a context ([T] int64) exactly; no tensor is a view of another."""
    c, T = decoder.config, len(ids)
    if not T:
        raise UserError("a context needs at least one token")
    cache = Recorder(c.layers, 1, c.kv_heads, T, c.width, decoder.dtype, decoder.device)
    cache.queries = [[] for _ in range(c.layers)]
    logits = decoder.prefill(ids[None], cache)[0, -1]
    queries = torch.stack([torch.cat(parts, 2) for parts in cache.queries])
    keys, values = (kind[:, 0, :, :T].clone() for kind in cache.data)
    return Prefilled(ids, keys, values, queries, logits.clone())


class Held:
    """What is held of one layer; this one holds everything.

    A method overrides what differs: `append` a decoded token, what attention has `seen`, what it does when it
    reads a token and when it has watched a decoding step, and which `tensors` are live.

    Parameters
    ----------
    keys, values : Tensor [H, n, d]
    """

    grows_by = 64
    whole = False
    """Whether the method's budget has room for the whole context: what it notes beside then comes on top of it."""
    moved = retrievals = 0
    """Bytes copied back from a `HostStore` so far, and how often entries were chosen; of methods that do so."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.buffer = torch.stack((keys, values)).to(HALF)  # [2, H, capacity, d]
        self.count = keys.shape[1]

    @property
    def keys(self) -> Tensor:
        """Keys [H, n, d] (a view)."""
        return self.buffer[0, :, : self.count]

    @property
    def values(self) -> Tensor:
        """Values [H, n, d] (a view)."""
        return self.buffer[1, :, : self.count]

    def append(self, key: Tensor, value: Tensor) -> None:
        """Hold a decoded token ([H, d] each) too."""
        if self.count == self.buffer.shape[2]:
            room = self.buffer.new_empty(*self.buffer.shape[:2], self.grows_by, self.buffer.shape[3])
            self.buffer = torch.cat((self.buffer, room), 2)
        self.buffer[0, :, self.count], self.buffer[1, :, self.count] = key.to(HALF), value.to(HALF)
        self.count += 1

    def read(self, token: int) -> None:
        """Called before a decoding step with the token that it runs."""

    def keep(self, indices: Tensor) -> None:
        """Hold only these entries, [H, n] int64: other ones for each head, in this order."""
        wide = indices[None, :, :, None].expand(2, -1, -1, self.buffer.shape[3])
        self.buffer, self.count = self.buffer.gather(2, wide), indices.shape[1]

    def seen(self, q: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a query ([H, R, d]) at ``position`` sees: keys and values [H, n, d], and a bias [H, n] on its scores."""
        return self.keys, self.values, None

    def watch(self, q: Tensor, weights: Tensor) -> None:
        """Called behind a decoding step with its queries [H, R, d] and attention weights [H, R, n]."""

    def tensors(self) -> Iterator[Tensor]:
        """Everything that is held."""
        yield self.buffer[:, :, : self.count]

    def attend(self, q: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Output [H, R, d] of attention, and its weights [H, R, n]."""
        keys, values, bias = self.seen(q, position)
        scores = q @ keys.to(q.dtype).mT / q.shape[-1] ** 0.5
        weights = (scores if bias is None else scores + bias[:, None]).softmax(-1)
        return weights @ values.to(q.dtype), weights


class Context(KVCache):
    """A context that a method holds, as the cache of a decoder that goes on from it one token at a time.

    Attributes
    ----------
    upkeep_seconds : float
        Time spent so far on holding decoded tokens and on what the method does behind a step; where a GPU computes,
        the time it takes to tell it so.
    """

    plain = uniform = True

    def __init__(self, decoder: Decoder, layers: list[Held], length: int, logits: Tensor):
        self.decoder, self.layers, self.logits = decoder, layers, logits
        self.in_order, self.upkeep_seconds = length, 0.0

    def __len__(self) -> int:
        """Tokens so far, held or not: positions go on from it."""
        return self.in_order

    def reserve(self, count: int) -> None:
        """Methods make room themselves."""

    def note_positions(self, positions: Tensor) -> None:
        """Methods note them themselves, if they need them."""

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        held, began = self.layers[layer], perf_counter()
        held.append(keys[0, :, 0], values[0, :, 0])
        self.upkeep_seconds += perf_counter() - began
        y, weights = held.attend(q[0], self.in_order - 1)
        began = perf_counter()
        held.watch(q[0], weights)
        self.upkeep_seconds += perf_counter() - began
        return y[None]

    def extend(self, ids: Tensor) -> Tensor:
        """Go on with tokens ([n] int64); logits [n, V] behind each of them."""
        rows = []
        for token in ids:
            for held in self.layers:
                held.read(int(token))
            self.logits = self.decoder.forward(token.view(1, 1), self, want="last")[0, -1]
            rows.append(self.logits)
        return torch.stack(rows) if rows else self.logits.new_zeros(0, len(self.logits))

    def greedy(self, limit: int, ends: Callable[[int], bool]) -> list[int]:
        """Go on with the most probable tokens: those of an answer of at most ``limit`` (1 or more).

        ``ends`` says whether a token is the last; the last is not run.
        """
        tokens = [int(self.logits.argmax())]
        while len(tokens) < limit and not ends(tokens[-1]):
            tokens.append(int(self.extend(torch.tensor(tokens[-1:]))[0].argmax()))
        return tokens

    def nbytes(self) -> int:
        """Bytes of what is held."""
        return sum(tensor.numel() * tensor.element_size() for held in self.layers for tensor in held.tensors())


class Abreast(KVCache):
    """Contexts that go on with the same tokens, as rows of one pass: the network's weights are read once for all.

    Parameters
    ----------
    contexts : list of Context
        B of them, over one decoder.
    """

    plain = uniform = True

    def __init__(self, contexts: list[Context]):
        self.contexts, self.decoder = contexts, contexts[0].decoder
        self.alone = torch.eye(len(contexts), dtype=torch.bool, device=self.decoder.device)

    def __len__(self) -> int:
        """Each context counts its own tokens."""
        return 0

    def reserve(self, count: int) -> None:
        """Methods make room themselves."""

    def note_positions(self, positions: Tensor) -> None:
        """Methods note them themselves, if they need them."""

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        B = len(self.contexts)
        rows = q.view(*q.shape[:2], -1, B, q.shape[3])  # [1, H, R, B, d]
        ys = [
            context.attend(layer, rows[:, :, :, b], keys[:, :, b : b + 1], values[:, :, b : b + 1], None)
            for b, context in enumerate(self.contexts)
        ]
        return torch.stack(ys, 3).view_as(q)

    def extend(self, ids: Tensor) -> Tensor:
        """Go on with tokens ([n] int64); logits [B, n, V] behind each of them, and behind the last in each context."""
        rows = [torch.stack([context.logits for context in self.contexts])]
        for token in ids:
            for held in (held for context in self.contexts for held in context.layers):
                held.read(int(token))
            positions = torch.tensor([[len(context) for context in self.contexts]])
            for context in self.contexts:
                context.in_order += 1
            step = token.expand(1, len(self.contexts))
            rows.append(self.decoder.forward(step, self, positions=positions, tree=self.alone, want="all")[0])
        for context, logits in zip(self.contexts, rows[-1], strict=True):
            context.logits = logits
        return torch.stack(rows, 1)[:, 1:]

    def score(self, true: Tensor) -> Tensor:
        """Go on with all but the last of tokens ([n] int64); logits [B, n, V] with which each of them is predicted."""
        first = torch.stack([context.logits for context in self.contexts])
        return torch.cat((first[:, None], self.extend(true[:-1])), 1)


class Holder:
    """The system of a cache method: holds a prefilled context, and generates.

    Parameters
    ----------
    model : Language
    hold : callable (Prefilled) -> list of Held
    """

    def __init__(self, model: Language, hold: Callable[[Prefilled], list[Held]]):
        self.model, self._hold = model, hold

    def hold(self, prefilled: Prefilled) -> tuple[Context, float]:
        """The compressed context, and the seconds that compression took."""
        device = self.model.decoder.device
        began = now(device)
        with torch.inference_mode():
            layers = self._hold(prefilled)
        seconds = now(device) - began
        return Context(self.model.decoder, layers, len(prefilled), prefilled.logits), seconds

    def generate(self, prompt_ids: Tensor, limit: int, rng: np.random.Generator) -> Generation:
        """Greedy answer of at most ``limit`` tokens over the compressed prompt."""
        if not limit:
            return Generation(prompt_ids[:0], Cost())
        began = perf_counter()
        context, _ = self.hold(prefill(self.model.decoder, prompt_ids))
        held = perf_counter()
        tokens = context.greedy(limit, self.model.stop_ids.__contains__)
        steps = len(tokens) - 1
        cost = Cost(passes=steps, rows=steps, accepted_per_pass=[1] * steps, cache_bytes=context.nbytes())
        cost.prefill_seconds, cost.verify_seconds = held - began, perf_counter() - held
        return Generation(torch.tensor(tokens), cost)
