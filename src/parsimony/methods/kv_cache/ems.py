"""EMS (Li et al., arXiv 2412.08521): evict what is irrelevant, merge what is middling into similar tokens, by head.

There is no official code, and the formulas are this project's reading of the paper's terms: global and local score
on one mean, N_irr / N_tbm / N_imp tokens, similarity of keys times similarity of values, a zero centre.  Keys are
cached rotated, so by default a merged slot keeps its centre's key and position.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.budget import entries
from parsimony.methods.kv_cache.held import Held, Holder, Prefilled
from parsimony.methods.kv_cache.scores import received
from parsimony.models.decoder import Decoder
from parsimony.models.language import Language

CHOICES = {
    "combine": ("max", "sum", "global", "local"),
    "merged_keys": ("centre", "stored", "moved"),
    "overflow": ("oldest", "lowest"),
}


class EMS:
    """M slots a head: the last ``window`` tokens, and N_imp = M - window centres that others are merged into.

    Parameters
    ----------
    budget : float
        M, of which the window is a part.
    unit : {"tokens", "ratio", "bytes"}
        Of keys and values; the 16 bytes of scores a slot come on top, and are counted.
    window : int
        w: the tokens that are never touched, and the queries of the local score.
    combine : {"max", "sum", "global", "local"}
        s from s_Glo, brought to the mean of s_Loc, and s_Loc; the parts alone are ablations.
    per_observer : bool
        Whether s_Glo is divided by the number of queries that see a token.
    mass : float
        p: tokens outside the smallest set with this share of a head's scores are irrelevant.
    threshold : float
        tau_m, of similarities from 0 to 1: below it a token goes to the zero centre.  Above 1 nothing is merged;
        below 0 the zero centre takes only what is irrelevant.
    bias : bool
        Whether a slot of n tokens counts n times in attention.
    merged_keys : {"centre", "stored", "moved"}
        A slot's key is its centre's; or the mean of the rotated keys; or their mean at the centre's position.
    overflow : {"oldest", "lowest"}
        What is merged when the window overflows: the token that leaves it, or if its score is lower a centre.
    """

    def __init__(
        self, budget: float, unit: str = "ratio", window: int = 32, combine: str = "max", per_observer: bool = False,
        mass: float = 0.95, threshold: float = 0.5, bias: bool = True, merged_keys: str = "centre",
        overflow: str = "oldest",
    ):  # fmt: skip
        for name, value in (("combine", combine), ("merged_keys", merged_keys), ("overflow", overflow)):
            if value not in CHOICES[name]:
                raise UserError(f"ems: {name} {value!r} is not one of {', '.join(CHOICES[name])}; mend its params")
        if window < 1 or not 0 <= mass <= 1:
            raise UserError(f"ems: window {window} is below 1 or mass {mass} outside 0 to 1; mend its params")
        self.budget, self.unit, self.window = budget, unit, window
        self.combine, self.per_observer = combine, per_observer
        self.mass, self.threshold, self.bias = mass, threshold, bias
        self.merged_keys, self.overflow = merged_keys, overflow

    def build(self, model: Language, inputs: Inputs) -> Holder:
        """The system."""
        return Holder(model, lambda prefilled: self.hold(prefilled, model.decoder))

    def hold(self, prefilled: Prefilled, decoder: Decoder) -> list[Held]:
        """Every layer with the same budget."""
        M, T = entries(self.budget, self.unit, prefilled), len(prefilled)
        w = min(self.window, M)
        return [
            Slots(keys, values, received(prefilled, n), received(prefilled, n, T - w), M, w, self, decoder)
            for n, (keys, values) in enumerate(zip(prefilled.keys, prefilled.values, strict=True))
        ]


class Slots(Held):
    """Centres, and behind them the window: M entries at most, equally many for every head.

    Each has four marks [4, H, n]: position, s_Glo, s_Loc, and of how many tokens it was merged.  Once decoding has
    begun, s_Loc fades by 1 - 1/w a step, which weighs as many queries as the last w without holding their attention.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, glo: Tensor, loc: Tensor, M: int, w: int, settings: EMS, decoder: Decoder
    ):
        super().__init__(keys, values)
        at = torch.arange(self.count, device=glo.device).expand_as(glo)
        self.marks = torch.stack((at.to(glo.dtype), glo, loc, torch.ones_like(glo)))
        self.M, self.w, self.settings, self.decoder, self.length = M, w, settings, decoder, self.count
        self.whole = self.count <= M
        if self.count > M:
            s = self.scores(self.count - w)
            ranked = s.sort(dim=-1, descending=True, stable=True)
            ahead = ranked.values.cumsum(-1) - ranked.values
            self.merge(ranked.indices, s, ahead < settings.mass * s.sum(-1, keepdim=True))

    def scores(self, n: int) -> Tensor:
        """s [H, n] of the first n entries."""
        at, glo, loc, _ = self.marks[:, :, :n]
        if self.settings.per_observer:
            glo = glo / (self.length - at)
        glo = glo * (loc.mean(-1, keepdim=True) / glo.mean(-1, keepdim=True).clamp(min=1e-20))
        return {"max": glo.maximum(loc), "sum": glo + loc, "global": glo, "local": loc}[self.settings.combine]

    def merge(self, order: Tensor, s: Tensor, relevant: Tensor) -> None:
        """Merge the first entries of ``order``, the centres, with the others: one scatter over N_imp + 1 classes.

        Parameters
        ----------
        order : Tensor [H, n] int64
            All entries before the window, n = N_imp + N.
        s : Tensor [H, n]
            Their scores: the weights of the means.
        relevant : Tensor [H, n] bool
            In the order of ``order``; what is not goes to the zero centre, which is dropped.
        """
        N_imp, n = self.M - self.w, order.shape[1]
        centres, others = order[:, :N_imp].sort(-1).values, order[:, N_imp:]
        K, V = self.keys.float(), self.values.float()
        K_c, V_c, K_x, V_x = (picked(part, i) for i in (centres, others) for part in (K, V))
        near = cosines(K_x, K_c) * cosines(V_x, V_c)  # [H, N, N_imp]
        near = near.masked_fill(~relevant[:, N_imp:, None], -torch.inf)
        zero = near.new_full((*near.shape[:2], 1), self.settings.threshold)
        to = torch.cat((near, zero), -1).argmax(-1)  # [H, N]; the last class is the zero centre

        def summed(c: Tensor, x: Tensor) -> Tensor:
            """What the classes hold [H, N_imp, d], from centres [H, N_imp, d] and others [H, N, d]."""
            return F.pad(c, (0, 0, 0, 1)).scatter_add(1, to[..., None].expand_as(x), x)[:, :N_imp]

        at = self.marks[0].gather(1, centres)
        if self.settings.merged_keys == "moved":
            turn = F.pad(at, (0, 1)).gather(1, to) - self.marks[0].gather(1, others)
            K_x = self.decoder.rope(K_x[:, None], turn)[:, 0]
        s_c, s_x = (s.gather(1, i).clamp(min=1e-20)[..., None] for i in (centres, others))
        weight = summed(s_c, s_x)
        V_c = summed(s_c * V_c, s_x * V_x) / weight
        if self.settings.merged_keys != "centre":
            K_c = summed(s_c * K_c, s_x * K_x) / weight
        counted = summed(*(picked(self.marks[1:].permute(1, 2, 0), i) for i in (centres, others))).permute(2, 0, 1)
        merged = torch.stack((K_c, V_c)).to(self.buffer.dtype)
        self.buffer = torch.cat((merged, self.buffer[:, :, n : self.count]), 2)
        self.marks = torch.cat((torch.cat((at[None], counted)), self.marks[:, :, n:]), 2)
        self.count = self.M

    def append(self, key: Tensor, value: Tensor) -> None:
        super().append(key, value)
        new = self.marks.new_tensor([self.length, 0, 0, 1])
        self.marks = torch.cat((self.marks, new[:, None, None].expand(-1, self.marks.shape[1], 1)), 2)
        self.length += 1
        if self.count > self.M:
            n = self.count - self.w
            s = self.scores(n)
            if self.settings.overflow == "oldest":
                order = torch.arange(n, device=s.device).expand_as(s)
            else:
                order = s.argsort(dim=-1, descending=True, stable=True)
            self.merge(order, s, torch.ones_like(order, dtype=torch.bool))

    def watch(self, q: Tensor, weights: Tensor) -> None:
        got = weights.mean(1)
        self.marks[1] += got
        self.marks[2] = self.marks[2] * (1 - 1 / self.w) + got

    def seen(self, q: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.keys, self.values, self.marks[3].log().to(q.dtype) if self.settings.bias else None

    def tensors(self) -> Iterator[Tensor]:
        yield from super().tensors()
        yield self.marks


def picked(x: Tensor, indices: Tensor) -> Tensor:
    """Entries [H, m, d] of x [H, n, d], other ones for each head."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[2]))


def cosines(x: Tensor, c: Tensor) -> Tensor:
    """Cosines [H, N, N_imp] of x [H, N, d] and c [H, N_imp, d]; negative ones are 0, or two would make a positive."""
    return (F.normalize(x, dim=-1) @ F.normalize(c, dim=-1).mT).clamp(min=0)
