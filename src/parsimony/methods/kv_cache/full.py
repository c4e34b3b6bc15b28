"""The full cache: everything in half precision."""

from __future__ import annotations

from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.held import Held, Holder, Prefilled
from parsimony.models.language import Language


class Full:
    """What all others are compared with."""

    def build(self, model: Language, inputs: Inputs) -> Holder:
        """The system."""
        return Holder(model, self.hold)

    def hold(self, prefilled: Prefilled) -> list[Held]:
        """One `Held` a layer."""
        return [Held(*layer) for layer in zip(prefilled.keys, prefilled.values, strict=True)]
