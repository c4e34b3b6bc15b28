"""KIVI (Liu et al., ICML 2024, arXiv 2402.02750), and quantisation along one axis alone.

Keys are quantised per channel, in groups of consecutive tokens; values per token, in groups of channels; the newest
tokens wait in half precision until there are enough of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.kernels import low_bit_attention
from parsimony.kernels.common import usable
from parsimony.kernels.low_bit_codes import Coded
from parsimony.methods.kv_cache.held import HALF, Held, Holder, Prefilled
from parsimony.methods.kv_cache.quantise import Codes, joined
from parsimony.models.language import Language

AXES = {"channel": 1, "token": 2}
"""Along which axis of [H, T, d] the groups of a quantisation "per channel" or "per token" run."""

JOIN = 64
"""A block takes single tokens up to so many; codes stay as they are."""


class Kivi:
    """Quantises the prefill and then every ``residual`` decoded tokens; nothing is quantised twice.

    Parameters
    ----------
    key_bits, value_bits : int
    group : int
        g.
    residual : int
        R, a multiple of g: keys wait until R are there; of the values always the newest R wait.
    keys_per, values_per : {"channel", "token"}
        "channel" and "token" are KIVI; the same for both is the plain quantisation it is compared with.
    """

    def __init__(
        self, key_bits: int = 2, value_bits: int = 2, group: int = 32, residual: int = 32, keys_per: str = "channel",
        values_per: str = "token",
    ):  # fmt: skip
        if residual % group or not {keys_per, values_per} <= set(AXES):
            raise UserError(
                f"kivi: residual {residual} is no multiple of group {group}, or {keys_per!r}, {values_per!r} are not "
                "channel or token; mend its params"
            )
        self.key_bits, self.value_bits, self.group, self.residual = key_bits, value_bits, group, residual
        self.keys_per, self.values_per = keys_per, values_per

    def build(self, model: Language, inputs: Inputs) -> Holder:
        """The system."""
        return Holder(model, self.hold)

    def hold(self, prefilled: Prefilled) -> list[Held]:
        """One `Quantised` a layer."""
        return [Quantised(keys, values, self) for keys, values in zip(prefilled.keys, prefilled.values, strict=True)]


class Quantised(Held):
    """Blocks of codes, and behind them tokens in half precision."""

    def __init__(self, keys: Tensor, values: Tensor, settings: Kivi):
        self.settings = settings
        self.blocks: dict[str, list[Codes]] = {"keys": [], "values": []}
        self.rest = {"keys": keys.to(HALF), "values": values.to(HALF)}
        self.flush()

    def flush(self) -> None:
        """Quantise what need not wait any longer."""
        s = self.settings
        for kind, bits, per in (("keys", s.key_bits, s.keys_per), ("values", s.value_bits, s.values_per)):
            waiting = self.rest[kind].shape[1]
            # Per channel whole groups of tokens are needed; per token one can go as soon as a newer one comes.
            ready = waiting - waiting % s.residual if per == "channel" else max(waiting - s.residual, 0)
            if ready:
                blocks = self.blocks[kind]
                block = self.code(self.rest[kind][:, :ready], bits, AXES[per])
                if per == "token" and ready == 1 and blocks and blocks[-1].shape[1] < JOIN:
                    block = joined([blocks.pop(), block], 1)
                blocks.append(block)
                self.rest[kind] = self.rest[kind][:, ready:].clone()

    def code(self, x: Tensor, bits: int, axis: int) -> Codes:
        """A block [H, n, d] in codes."""
        return Codes.of(x, bits, axis, self.settings.group)

    def append(self, key: Tensor, value: Tensor) -> None:
        for kind, one in (("keys", key), ("values", value)):
            self.rest[kind] = torch.cat((self.rest[kind], one[:, None].to(HALF)), 1)
        self.flush()

    def seen(self, q: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor | None]:
        keys, values = (
            torch.cat([block.restore() for block in self.blocks[kind]] + [self.rest[kind].float()], 1)
            for kind in ("keys", "values")
        )
        return keys, values, None

    def attend(self, q: Tensor, position: int) -> tuple[Tensor, Tensor]:
        whole = q.shape[-1] * min(self.settings.key_bits, self.settings.value_bits) % 8 == 0
        if not (usable(q) and whole and all(self.blocks.values())):
            return super().attend(q, position)
        # The prompt stays in codes, as far as keys and values both do; what was decoded is restored.
        keys, values = (Coded.of(self.blocks[kind][0]) for kind in ("keys", "values"))
        count = min(len(keys), len(values))
        others = (
            torch.cat(
                [first.rest(count), *(block.restore() for block in self.blocks[kind][1:]), self.rest[kind].float()], 1
            )
            for kind, first in (("keys", keys), ("values", values))
        )
        parts = [low_bit_attention.attend(q, keys, values, count), low_bit_attention.dense(q, *others)]
        return low_bit_attention.merged(parts), q.new_empty(*q.shape[:2], 0)  # weights are not formed

    def tensors(self) -> Iterator[Tensor]:
        for kind in ("keys", "values"):
            for block in self.blocks[kind]:
                yield from block.tensors()
            yield self.rest[kind]
