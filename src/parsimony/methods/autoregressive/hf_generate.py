"""Assisted generation of ``transformers`` as a text generator whose costs are counted as ours are."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from parsimony.interfaces import Cost, Generation
from parsimony.models.language import Language
from parsimony.models.packed import multiplies


@lru_cache(maxsize=2)
def load(folder: Path, dtype: torch.dtype, device: torch.device):
    """The network of ``transformers`` with the weights of a model's folder; it keeps nothing from call to call."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
    network.generation_config = GenerationConfig()  # what a model's own file asks for, such as penalties, is not greedy
    return network.to(device).eval()


class HfGenerator:
    """Greedy assisted generation by ``transformers``; its forward passes of the target are watched from outside.

    ``transformers`` lets the drafter speak before the prompt has been read, so that the pass over the prompt may
    accept drafted tokens too.  If it does, it counts here as a pass that gained them; the first token, which the
    prefill gives anyway, is not counted, as everywhere.

    Parameters
    ----------
    model : Language
        Whose folder, dtype, device and stop tokens are used. On a CPU without instructions for a half-precision dtype
        `transformers` would verify row by row, so it gets float32 there: a peer runs at its best.
    options : dict
        What `generate` of ``transformers`` gets besides: the kind of drafting.
    """

    def __init__(self, model: Language, **options):
        device, dtype = torch.device(model.decoder.device), model.decoder.dtype
        at_its_best = dtype if device.type != "cpu" or multiplies(dtype) else torch.float32
        self.network = load(model.folder, at_its_best, device)
        self.stop = sorted(model.stop_ids)
        self.options = options

    def generate(self, prompt_ids: Tensor, limit: int, rng: np.random.Generator) -> Generation:
        """Greedy continuation of ``prompt_ids`` ([T] int64) by at most ``limit`` tokens; ``rng`` is not drawn."""
        if limit < 1:
            return Generation(torch.empty(0, dtype=torch.int64), Cost())
        ids, watch = prompt_ids[None].to(self.network.device), Watch()
        hooks = [
            self.network.register_forward_pre_hook(watch.before, with_kwargs=True),
            self.network.register_forward_hook(watch.after),
        ]
        try:
            with torch.inference_mode():
                # The token that ends a turn pads, too, and stands inside the prompt: the mask cannot follow from ids.
                out = self.network.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False,
                    eos_token_id=self.stop, pad_token_id=self.stop[0], return_dict_in_generate=True, **self.options,
                )  # fmt: skip
        finally:
            for hook in hooks:
                hook.remove()
        text = out.sequences[0].cpu()
        cost = watch.cost(text, len(prompt_ids))
        cost.cache_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers)
        return Generation(text[len(prompt_ids) :], cost)


class Watch:
    """Notes of every forward pass of the target: what went in, behind how many cached tokens, from when to when."""

    def __init__(self):
        self.began = perf_counter()
        self.passes: list[tuple[int, Tensor]] = []
        self.times: list[tuple[float, float]] = []

    def before(self, network, arguments, named) -> None:
        """Pre-hook of the target."""
        self.passes.append((named["past_key_values"].get_seq_length(), named["input_ids"][0].cpu()))
        self.started = perf_counter()

    def after(self, network, arguments, output) -> None:
        """Hook of the target."""
        self.times.append((self.started, perf_counter()))

    def cost(self, text: Tensor, prompt: int) -> Cost:
        """The cost of a generation that came to ``text`` ([T] int64), of which the first ``prompt`` tokens were given.

        The rows of a pass are what was not cached yet, its last known token first; all behind that are drafted, and
        those that are found in the text were accepted.
        """
        known = [prompt, *(cached + 1 for cached, _ in self.passes[1:]), len(text)]  # tokens known before each pass
        cost, ended = Cost(), perf_counter()
        for n, (cached, rows) in enumerate(self.passes):
            draft, new = rows[known[n] - cached :], text[known[n] : known[n + 1]]
            gained = len(new) - (n == 0)
            if not gained:
                continue  # a prefill that gave the first token alone
            cost.passes += 1
            cost.rows += 1 + len(draft)
            cost.drafted += len(draft)
            common = min(len(draft), len(new))
            cost.accepted += int((draft[:common] == new[:common]).cumprod(0).sum())
            cost.accepted_per_pass.append(gained)
        cost.prefill_seconds = self.times[0][1] - self.began
        cost.verify_seconds = sum(stop - start for start, stop in self.times[1:])
        cost.draft_seconds = ended - self.began - cost.prefill_seconds - cost.verify_seconds
        return cost
