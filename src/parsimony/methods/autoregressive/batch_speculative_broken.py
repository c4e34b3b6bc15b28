"""What goes wrong when ragged rows are not realigned: the incorrect baselines of Zhang et al. 2025."""

from __future__ import annotations

import torch
from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.batch_verify import BatchLoop
from parsimony.methods.autoregressive.draft_model import DraftNetwork
from parsimony.models.language import Language


class BatchSpeculativeBroken:
    """EQSPEC with one step done wrong; **not lossless**, and made to show by how much.

    Parameters
    ----------
    fault : {"holes", "wrong_token", "no_repad"}
        "holes" (as BSP): rejected entries stay in the cache as masked holes on the right, and positions are read off
        the column.  "wrong_token" (as DSD): the first wrong draft token is accepted, and padding is encoded, seen and
        counted in positions.  "no_repad": tokens and mask are padded anew, keys and values stay where they were.
    network, layers, draft_tokens
        Draft network and K, as in `DraftModel`.
    """

    def __init__(self, fault: str, network: str = "distilled", layers: int = 6, draft_tokens: int = 5):
        self.fault, self.network, self.layers, self.draft_tokens = fault, network, layers, draft_tokens

    def build(self, model: Language, inputs: Inputs) -> BatchLoop:
        """The batched loop with the fault in it."""
        network = DraftNetwork.of(model, inputs, self.network, self.layers)
        return FAULTS[self.fault](model, network, self.draft_tokens)


class Holes(BatchLoop):
    """Rejected entries are masked where they stand."""

    def _positions(self, rows) -> Tensor:
        return torch.full((len(rows),), rows[0].width - 1)

    def _realign(self, rows, caches):
        width = max(s.width for s in rows)
        for cache, (_, lag) in zip(caches, self.networks, strict=True):
            for i, s in enumerate(rows):
                cache.positions[:, i, s.width - lag : width - lag] = -1
            cache.truncate(width - lag)
        for s in rows:
            s.pads = width - len(s.tokens)
        return caches


class WrongToken(BatchLoop):
    """One draft token too many is accepted, and no mask hides the padding."""

    _positions = Holes._positions

    def _accept(self, m, draft, choice):
        return (choice[: m + 1], m) if m == len(draft) else (draft[: m + 1], m + 1)

    def _together(self, rows, batch):
        caches = super()._together(rows, batch)
        pad = min(self.model.stop_ids)
        ids = torch.tensor([[pad] * s.pads + s.tokens for s in rows])
        for cache, (decoder, lag) in zip(caches, self.networks, strict=True):
            cache.clear()
            if ids.shape[1] > lag:
                decoder.prefill(ids[:, :-lag], cache, want="none")
        return caches

    def _realign(self, rows, caches):
        caches = super()._realign(rows, caches)
        for cache in caches:
            cache.positions[:, :, : len(cache)] = torch.arange(len(cache))
        return caches


class NoRepad(BatchLoop):
    """Keys and values are cropped to the new width without being moved."""

    def _realign(self, rows, caches):
        width = max(len(s.tokens) for s in rows)
        for s in rows:
            s.pads = width - len(s.tokens)
        pads = torch.tensor([s.pads for s in rows])[:, None]
        for cache, (_, lag) in zip(caches, self.networks, strict=True):
            cache.truncate(width - lag)
            cache.positions[:, :, : width - lag] = (torch.arange(width - lag) - pads).clamp(min=-1)
        return caches


FAULTS = {"holes": Holes, "wrong_token": WrongToken, "no_repad": NoRepad}
