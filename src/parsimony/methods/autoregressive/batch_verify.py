"""The draft-verify loop over a batch, whose rows accept unequally many tokens a round (the ragged problem).

A round on B sequences of one stored width W (padding on the left, and c tokens): the draft network proposes K tokens a
row, the target verifies them in one pass over [B, K + 1], row i gains g_i, and the rows must be made to fit together
again.  Positions of tokens are 0..c-1, counted behind the padding and never derived from ids: SmolLM2's padding, end
of sequence and end of turn are one id that stands inside every prompt.

Our choices where the paper's code differs: the draft network keeps its KV cache as well (the code encodes the whole
text again every round); prompts are prefilled one by one, so no padding is computed and a sequence that enters the
pool late costs the others nothing; a row that stops drafting early is not padded on the right, since verification
decides anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from parsimony.interfaces import Batch, Cost, Generation
from parsimony.methods.autoregressive.draft_model import DraftNetwork
from parsimony.methods.autoregressive.verify import until
from parsimony.models.decoder import Decoder
from parsimony.models.kv_cache import KVCache
from parsimony.models.language import Language


@dataclass(eq=False)
class Sequence:
    """One prompt and what has been generated behind it.

    Attributes
    ----------
    tokens : list of int
        Prompt and generated tokens, c in all.
    prompt : int
        Tokens of the prompt.
    caches : list of KVCache
        Its own keys and values, unpadded, one cache a network (see `BatchLoop.networks`).
    pads : int
        Padding in front of it where it is stored in a batch.
    """

    tokens: list[int]
    prompt: int
    caches: list[KVCache]
    pads: int = 0
    done: bool = False
    cost: Cost = field(default_factory=Cost)

    @property
    def width(self) -> int:
        """Stored length W: padding and tokens."""
        return self.pads + len(self.tokens)

    @property
    def produced(self) -> int:
        return len(self.tokens) - self.prompt


class BatchLoop:
    """EQSPEC: a batch stays together until all have ended, and is realigned after every round.

    Without a draft network it is plain batched greedy decoding: every row gains one token, and nothing is realigned.

    Parameters
    ----------
    model : Language
    network : DraftNetwork or None
    draft_tokens : int
        K.
    bonus : bool
        Whether a row whose K drafts are all right gains the target's next token too (K + 1 in all).  The paper's code
        drops the last row of logits, so that it gains K, the last of which it counts as the bonus.
    """

    def __init__(self, model: Language, network: DraftNetwork | None, draft_tokens: int, bonus: bool = True):
        self.model, self.network, self.draft_tokens, self.bonus = model, network, draft_tokens, bonus
        self.networks: list[tuple[Decoder, int]] = [(model.decoder, 1)]
        """Each network, and how many of the newest tokens its cache lacks: the target lacks the newest, the drafter
        also the one before (after a round that accepted everything it has not seen the last draft)."""
        if network is not None:
            self.networks.append((network.decoder, 2))
        self._buffers: dict[tuple, list[KVCache]] = {}

    def generate_batch(
        self, prompts: list[Tensor], limit: int, rng: np.random.Generator, together: int | None = None
    ) -> Batch:
        """Greedy continuations of ``prompts`` by at most ``limit`` tokens, at most ``together`` in a pass (None: all).

        The first token of each comes from its prefill; costs count what follows.
        """
        batch = Batch([], Cost())
        if limit < 1:
            empty = torch.empty(0, dtype=torch.int64)
            return Batch([Generation(empty, Cost()) for _ in prompts], Cost())
        sequences = [Sequence(prompt.tolist(), len(prompt), []) for prompt in prompts]
        self._run(sequences, limit, together or max(len(prompts), 1), batch)
        for s in sequences:
            s.cost.cache_bytes = s.caches[0].nbytes() // len(s.caches[0]) * (len(s.tokens) - 1)
            batch.generations.append(Generation(torch.tensor(s.tokens[s.prompt :]), s.cost))
        return batch

    def _run(self, sequences: list[Sequence], limit: int, together: int, batch: Batch) -> None:
        for begin in range(0, len(sequences), together):
            rows = sequences[begin : begin + together]
            for s in rows:
                self._prefill(s, limit, batch)
            caches = self._together(rows, batch)
            while not all(s.done for s in rows):
                drafts, choice = self._pass(rows, caches, limit, batch)
                self._gain(rows, drafts, choice, limit, batch)
                began = perf_counter()
                caches = self._realign(rows, caches)
                batch.realign_seconds += perf_counter() - began

    def _prefill(self, s: Sequence, limit: int, batch: Batch) -> None:
        """Encode a prompt, and choose its first token."""
        began, ids = perf_counter(), torch.tensor([s.tokens])
        s.caches = [decoder.cache(s.prompt + limit + self.draft_tokens + 1) for decoder, _ in self.networks]
        logits = self.model.decoder.prefill(ids, s.caches[0])
        if self.network is not None and s.prompt > 1:
            self.network.decoder.prefill(ids[:, : s.prompt - 1], s.caches[1], want="none")
        s.tokens.append(int(logits[0, -1].argmax()))
        s.done = limit == 1 or s.tokens[-1] in self.model.stop_ids
        s.cost.prefill_seconds = perf_counter() - began
        batch.cost.prefill_seconds += s.cost.prefill_seconds

    def _pass(self, rows: list[Sequence], caches: list[KVCache], limit: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """Draft tokens [B, K] and the target's choice behind the newest token and behind each draft [B, K + 1]."""
        began = perf_counter()
        room = min(limit - s.produced for s in rows if not s.done)
        K = 0 if self.network is None else min(self.draft_tokens, room)
        newest = torch.tensor([s.tokens[-2:] for s in rows])  # [B, 2]
        at = self._positions(rows)[:, None]  # [B, 1], of the newest token
        drafts = self._draft(newest, at, caches[-1], K) if K else newest[:, :0]
        drafted = perf_counter()
        ids = torch.cat((newest[:, 1:], drafts), 1)
        logits = self.model.decoder.forward(ids, caches[0], positions=at + torch.arange(K + 1))
        choice = logits.argmax(-1).cpu()  # waits for a GPU
        cost = batch.cost
        cost.passes += 1
        cost.rows += ids.numel()
        cost.cache_bytes = max(cost.cache_bytes, sum(cache.nbytes() for cache in caches))
        cost.draft_seconds += drafted - began
        cost.verify_seconds += perf_counter() - drafted
        return drafts, choice

    def _positions(self, rows: list[Sequence]) -> Tensor:
        """Position [B] of each row's newest token."""
        return torch.tensor([len(s.tokens) - 1 for s in rows])

    def _draft(self, newest: Tensor, at: Tensor, cache: KVCache, K: int) -> Tensor:
        """K tokens a row [B, K] behind the ``newest`` two [B, 2]; the last of them stands at position ``at`` [B, 1]."""
        ids, positions, drafts = newest, torch.cat((at - 1, at), 1), []
        for _ in range(K):
            logits = self.network.decoder.forward(ids, cache, positions=positions, want="last")
            ids, positions = self.network.best(logits), positions[:, -1:] + 1
            drafts.append(ids)
        return torch.cat(drafts, 1)

    def _gain(self, rows: list[Sequence], drafts: Tensor, choice: Tensor, limit: int, batch: Batch) -> None:
        """Append to each row what it gained in a pass, and count; finished rows gain nothing."""
        K, total = drafts.shape[1], 0
        right = (choice[:, :K] == drafts).int().cumprod(1).sum(1).tolist()  # m, leading matches
        for s, m, draft, behind in zip(rows, right, drafts.tolist(), choice.tolist(), strict=True):
            if s.done:
                continue
            gained, accepted = self._accept(m, draft, behind)
            new = until(gained, self.model.stop_ids, limit - s.produced)
            s.tokens += new
            s.done = new[-1] in self.model.stop_ids or s.produced == limit
            total += len(new)
            for cost in (s.cost, batch.cost):
                cost.drafted += K
                cost.accepted += min(len(new), accepted)
            s.cost.passes += 1
            s.cost.rows += K + 1
            s.cost.accepted_per_pass.append(len(new))
        batch.cost.accepted_per_pass.append(total)

    def _accept(self, m: int, draft: list[int], choice: list[int]) -> tuple[list[int], int]:
        """Tokens gained and how many of them count as accepted drafts, when the first m of K drafts are right."""
        if self.bonus or m < len(draft):
            return choice[: m + 1], m
        return choice[:m], m - 1

    def _together(self, rows: list[Sequence], batch: Batch) -> list[KVCache]:
        """One padded cache a network, of sequences that each have their own."""
        began = perf_counter()
        width = max(len(s.tokens) for s in rows)
        caches = []
        for n, (decoder, lag) in enumerate(self.networks):
            cache = self._buffer(decoder, n, len(rows))
            cache.align([(s.caches[n], 0, 0, len(s.tokens) - lag) for s in rows], width - lag)
            caches.append(cache)
        for s in rows:
            s.pads = width - len(s.tokens)
        batch.realign_seconds += perf_counter() - began
        return caches

    def _realign(self, rows: list[Sequence], caches: list[KVCache]) -> list[KVCache]:
        """Strip padding, append, pad again (step 5 of the paper): rows end at W' = max(c_i + g_i), less the lag."""
        width = max(len(s.tokens) for s in rows)
        pads = [width - len(s.tokens) for s in rows]
        if pads == [s.pads for s in rows]:
            for cache, (_, lag) in zip(caches, self.networks, strict=True):
                cache.truncate(width - lag)  # all gained equally: every row is in place
            return caches
        aligned = []
        for n, (decoder, lag) in enumerate(self.networks):
            old, new = caches[n], self._buffer(decoder, n, len(rows), apart_from=caches[n])
            new.align([(old, i, s.pads, s.width - lag) for i, s in enumerate(rows)], width - lag)
            aligned.append(new)
        for s, pad in zip(rows, pads, strict=True):
            s.pads = pad
        return aligned

    def _buffer(self, decoder: Decoder, n: int, batch: int, apart_from: KVCache | None = None) -> KVCache:
        """One of two caches that take turns."""
        pair = self._buffers.setdefault((n, batch), [decoder.cache(256, batch), decoder.cache(1, batch)])
        return pair[1] if pair[0] is apart_from else pair[0]


class PooledLoop(BatchLoop):
    """EXSPEC: sequences wait in a pool, and those whose stored lengths agree are batched without realignment.

    Each sequence owns its keys and values; a pass runs on a copy in a batch, and what it gained is copied back.  A
    sequence that is still in its place from the pass before is not copied again.

    Parameters
    ----------
    window : int
        How many unfinished sequences are looked at; at least as many as a batch has.
    sort : bool
        Whether prompts are taken shortest first.
    """

    def __init__(self, model, network, draft_tokens, bonus=True, window: int = 32, sort: bool = False):
        super().__init__(model, network, draft_tokens, bonus)
        self.window, self.sort = window, sort

    def _run(self, sequences: list[Sequence], limit: int, together: int, batch: Batch) -> None:
        waiting = sorted(sequences, key=lambda s: s.prompt) if self.sort else list(sequences)
        pool: list[Sequence] = []
        places: dict[int, list[tuple]] = {}
        while waiting or pool:
            while waiting and len(pool) < max(self.window, together):
                s = waiting.pop(0)
                self._prefill(s, limit, batch)
                if not s.done:
                    pool.append(s)
            if not pool:
                continue
            began = perf_counter()
            rows, grouped = self._choose(pool, min(together, len(pool)), together)
            batch.grouped += grouped
            rows, caches = self._stack(rows, places.get(len(rows), []))
            before, lengths = [len(s.tokens) for s in rows], [len(cache) for cache in caches]
            chosen = perf_counter()
            drafts, choice = self._pass(rows, caches, limit, batch)
            self._gain(rows, drafts, choice, limit, batch)
            passed = perf_counter()
            for i, (s, c) in enumerate(zip(rows, before, strict=True)):
                for cache, own, length in zip(caches, s.caches, lengths, strict=True):
                    own.extend(cache, i, length, length + len(s.tokens) - c)
            places[len(rows)] = [(s, s.pads, len(s.tokens)) for s in rows]
            pool = [s for s in pool if not s.done]
            batch.realign_seconds += chosen - began + perf_counter() - passed

    @staticmethod
    def _choose(pool: list[Sequence], count: int, together: int) -> tuple[list[Sequence], bool]:
        """The first ``together`` sequences of one stored width, or else the first ``count``, padded anew."""
        groups: dict[int, list[Sequence]] = {}
        for s in pool:
            group = groups.setdefault(s.width, [])
            group.append(s)
            if len(group) == together:
                return group, True
        rows = pool[:count]
        width = max(len(s.tokens) for s in rows)
        for s in rows:
            s.pads = width - len(s.tokens)
        return rows, False

    def _stack(self, rows: list[Sequence], places: list[tuple]) -> tuple[list[Sequence], list[KVCache]]:
        """The sequences in the order in which they stand in the batch, and the caches of the batch.

        ``places`` says what the rows of the buffers hold: sequence, padding and number of tokens.
        """
        at = {place: i for i, place in enumerate(places)}
        ordered: list[Sequence | None] = [None] * len(rows)
        moved = []
        for s in rows:
            i = at.get((s, s.pads, len(s.tokens)))
            if i is None:
                moved.append(s)
            else:
                ordered[i] = s
        stays = [s is not None for s in ordered]
        ordered = [moved.pop(0) if s is None else s for s in ordered]
        width, caches = rows[0].width, []
        for n, (decoder, lag) in enumerate(self.networks):
            cache = self._buffer(decoder, n, len(rows))
            parts = [(s.caches[n], 0, 0, len(s.tokens) - lag) for s in ordered]
            cache.align([None if stay else part for stay, part in zip(stays, parts, strict=True)], width - lag)
            caches.append(cache)
        return ordered, caches
