"""How often guesses several tokens ahead are right, along the model's own greedy answers."""

from __future__ import annotations

import torch
from safetensors import safe_open

from parsimony.benchmarks import prompts
from parsimony.interfaces import Item, Outcome, Workbench


class GuessAhead:
    """Counts, at every position of an answer, whether the guess n tokens ahead is what the model says there.

    Parameters
    ----------
    dtype : str
    timed : bool
        Whether it needs the machine for itself.
    items : int
        Prompts a category (the first turn of each is answered).
    limit : int
        Tokens of an answer.
    characters : int
        Longer documents are cut at the last sentence that fits.
    """

    def __init__(self, dtype: str, timed: bool, items: int, limit: int, characters: int):
        self.dtype, self.timed, self.count, self.limit, self.characters = dtype, timed, items, limit, characters

    def items(self, paths, seed: int) -> list[Item]:
        return prompts.spec_mix(paths, dict.fromkeys(prompts.CATEGORIES, self.count), seed, self.characters)

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {c: missing[asset] for c, assets in prompts.CATEGORIES.items() for asset in assets if asset in missing}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, model = Outcome(), bench.model(self.dtype)
        prompt = model.chat([{"role": "user", "content": item.turns[0]}])
        answer = bench.reference(self.dtype).generate(prompt, self.limit, bench.rng(item.id)).tokens
        ids, size = torch.cat((prompt, answer)), parameters(model)
        for point in bench.points:
            system = bench.system(point, self.dtype)
            cuts = torch.arange(len(prompt), len(ids) - 1)
            tokens = system.guess(ids, cuts).cpu()
            said = torch.nn.functional.pad(ids, (0, tokens.shape[1]), value=-1)  # nothing is right behind the end
            for i in range(tokens.shape[1]):
                inside = cuts + i + 1 < len(ids)
                right = tokens[:, i] == said[cuts + i + 1][:, None]  # [K, R]
                outcome.numbers += [
                    (point, f"guesses_{i + 2}", float(inside.sum()), "tokens"),
                    (point, f"first_right_{i + 2}", float(right[:, 0].sum()), "tokens"),
                    (point, f"any_right_{i + 2}", float(right.any(1).sum()), "tokens"),
                ]
            trained = system.trained
            outcome.numbers += [
                (point, "trained_parameters", sum(tensor.numel() for tensor in trained), ""),
                (point, "model_parameters", size, ""),
                (point, "trained_bytes", sum(tensor.nbytes for tensor in trained), "bytes"),
                (point, "model_bytes", size * model.decoder.dtype.itemsize, "bytes"),
            ]
        return outcome


def parameters(model) -> int:
    """Number of parameters in the model's safetensors."""
    total = 0
    for path in model.folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            total += sum(torch.Size(file.get_slice(name).get_shape()).numel() for name in file.keys())  # noqa: SIM118
    return total
