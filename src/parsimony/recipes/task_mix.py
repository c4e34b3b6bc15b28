"""A masked diffusion model and its autoregressive twin on generated tasks: same size, same data, minutes each.

The tasks: those of ParallelBench, lists of single letters (the setting of its theory), calculations, JSON objects and
small functions.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from parsimony.benchmarks import grammar_texts, scratch_pad
from parsimony.benchmarks.parallel_bench import lists, writing
from parsimony.benchmarks.parallel_bench.tasks import LENGTH, Example, example, examples, grade
from parsimony.benchmarks.unmasked import PIECES
from parsimony.errors import UserError
from parsimony.recipes.training import fit

SPECIAL = ["<mask>", "<end>", "<unknown>"]
MASK, END = 0, 1
MODULES = {"grammar_texts": grammar_texts, "scratch_pad": scratch_pad}
TASKS = {"writing": [*writing.TASKS], "latin_square": ["latin_square"], "sudoku": ["sudoku"]}
"""Tasks of ParallelBench with answers of one length."""
KINDS = ("letters", *TASKS, *MODULES)
"""Kinds of texts; all answers of a kind have one length, but those of lists."""
WINDOWS = {
    "scratch_pad": (*[40] * 7, scratch_pad.LENGTH),
    "grammar_texts": (52, 52, grammar_texts.LENGTH),
    "writing": (16, 16, LENGTH),
    "sudoku": (20, 20, LENGTH),
}
"""Answers of these kinds are mostly learnt from their beginnings: nothing is harder behind them, and all is dearer."""


def train(
    out: Path, inputs: dict[str, Path], mix: list[str], causal: bool, hidden: int, layers: int, heads: int,
    updates: int, batch: int, rate: float, floors: dict[str, float], seed: int,
):  # fmt: skip
    """Train on several kinds of texts; write ``config.json`` (Llama's), weights (float16) and ``tokenizer.json``.

    Masked: the loss of LLaDA (arXiv 2502.09992) on answers.  Causal: next-token prediction of them.

    Parameters
    ----------
    mix : list of str
        What the texts are of (`KINDS`); every update sees ``batch`` of each.
    floors : dict of str to float
        Least exact accuracy, one token at a time, on a task.

    Raises
    ------
    UserError
        When the model is below a floor.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[END], unk_token=SPECIAL[2])
    fast.save_pretrained(out)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=hidden, intermediate_size=8 * hidden // 3 // 16 * 16,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=160,
        tie_word_embeddings=True, rope_theta=100.0,
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    rng, drawn = np.random.default_rng(seed), [batches(tokenizer, kind, batch, seed) for kind in mix]
    loss_of = next_token if causal else unmasking
    fit(network, lambda: sum(loss_of(network, *next(each), rng) for each in drawn) / len(mix), updates, rate)
    weights = {name: tensor.half() for name, tensor in network.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config.to_dict(), indent=1, default=str) + "\n")
    found = accuracies(out, mix, causal)
    print(", ".join(f"{task} {value:.2f}" for task, value in found.items()), flush=True)
    for task, floor in floors.items():
        if found[task] < floor:
            raise UserError(
                f"the model solves {found[task]:.2f} of {task!r} one token at a time; it must solve {floor}: train it "
                "with more updates"
            )


def word_tokenizer():
    """One token a word, letter, digit or mark; decoding puts the pieces together again."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    splitter = pre_tokenizers.Split(Regex(PIECES), "isolated")
    pieces, rng = set(), Random(0)
    for _ in range(300):
        for source in KINDS:
            prompts, answers, _ = requests(source, 8, rng)
            pieces |= {piece for text in prompts + answers for piece, _ in splitter.pre_tokenize_str(text)}
    pieces |= {f"{blank}{name}" for blank in ("", " ") for name in (*lists.FIRST, *lists.LAST)}
    vocabulary = {piece: n for n, piece in enumerate([*SPECIAL, *sorted(pieces)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[2]))
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.Fuse()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def requests(source: str, count: int, rng: Random) -> tuple[list[str], list[str], int]:
    """Prompts, answers, and the length to which answers are filled up (lists have no end: all are as long)."""
    if source == "letters":
        length, drawn = rng.choice((2, 3, 3, 4, 4, 5, 5, 6, 6, 7)), []  # lists of 3 to 6, one shorter or longer
        while len(drawn) < count:
            one = example(rng.choice(sorted(lists.SEEDS)), rng, source)
            drawn += [one] if len(one.answer) == length else []
    elif source in TASKS:
        drawn, length = [example(rng.choice(TASKS[source]), rng) for _ in range(count)], LENGTH
    else:
        module = MODULES[source]
        drawn, length = [module.request(rng.choice(module.FORMS), rng) for _ in range(count)], module.LENGTH
    return [each.prompt for each in drawn], [each.answer for each in drawn], length


def batches(tokenizer, source: str, size: int, seed: int):
    """Prompts [B, P] padded on the left, lengths of the padding [B], and answers [B, L], for ever."""
    rng = Random(seed)
    while True:
        prompts, answers, length = requests(source, size, rng)
        if source in WINDOWS:
            length = rng.choice(WINDOWS[source])
        answers = [each.ids for each in tokenizer.encode_batch(answers)]
        yield *left_padded(tokenizer, prompts), torch.tensor([(ids + [END] * length)[:length] for ids in answers])


def left_padded(tokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids [B, P] of texts, padded on the left, and the lengths of the padding [B]."""
    rows = [each.ids for each in tokenizer.encode_batch(texts)]
    widest = max(map(len, rows))
    ids = torch.tensor([[END] * (widest - len(row)) + row for row in rows])
    return ids, torch.tensor([widest - len(row) for row in rows])


def unmasking(network, prompts: Tensor, pads: Tensor, answers: Tensor, rng) -> Tensor:
    """Loss of a masked diffusion model: k of an answer's L tokens are masked, k ~ U{1..L}; mean cross-entropy at them.

    This is LLaDA's second form of its bound (equation 6), of lower variance than masking each token with probability t.
    """
    B, L = answers.shape
    k = 1 + (rng.permutation(B) + rng.random(B)) * L // B  # spread evenly over the batch
    masked = torch.from_numpy(rng.random((B, L)).argsort(1).argsort(1) < k[:, None])
    ids = torch.cat((prompts, answers.where(~masked, torch.tensor(MASK))), 1)
    logits = run(network, ids, pads, causal=False, last=L)
    nats = F.cross_entropy(logits[masked], answers[masked], reduction="none")
    weights = (1 / torch.from_numpy(k).float())[:, None].expand(B, L)[masked]
    return (nats * weights).sum() / B


def next_token(network, prompts: Tensor, pads: Tensor, answers: Tensor, rng) -> Tensor:
    """Loss of the autoregressive twin: cross-entropy of the answer up to its first end."""
    ids = torch.cat((prompts, answers), 1)
    logits = run(network, ids, pads, causal=True, last=answers.shape[1] + 1)[:, :-1]
    ended = F.pad((answers == END).long().cumsum(1)[:, :-1], (1, 0)) > 0  # one end is enough
    return F.cross_entropy(logits[~ended], answers[~ended])


def run(network, ids: Tensor, pads: Tensor, causal: bool, last: int) -> Tensor:
    """Logits [B, last, V] of the last of ids [B, T], whose first ``pads`` are padding."""
    T = ids.shape[1]
    at = torch.arange(T)
    seen = (at[None] >= pads[:, None])[:, None, None].expand(-1, 1, T, T)
    if causal:
        seen = seen & torch.ones(T, T, dtype=torch.bool).tril()
    seen = seen | torch.eye(T, dtype=torch.bool)  # a padding row sees itself
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    positions = (at[None] - pads[:, None]).clamp(min=0)
    found = network(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=last)
    return found.logits


def accuracies(folder: Path, mix: list[str], causal: bool, count: int = 40) -> dict[str, float]:
    """Exact accuracy of each task of a mix, one token at a time, on test examples."""
    from parsimony.methods.autoregressive.verify import VerifyLoop
    from parsimony.methods.diffusion.sampler import BlockSampler
    from parsimony.methods.diffusion.static_unmasking import TopK
    from parsimony.models.decoder import Decoder
    from parsimony.models.masked import Masked

    model = Masked.load(folder, SPECIAL[MASK], SPECIAL[END : END + 1], "float32")
    if causal:
        model.decoder = Decoder.load(folder)
    system = VerifyLoop(model) if causal else BlockSampler(model, TopK("low_confidence", 1))
    rng, asked = np.random.default_rng(0), {}
    for source in mix:
        if source in MODULES:
            module = MODULES[source]
            asked |= {form: [(one, module.LENGTH) for one in module.requests(form, count)] for form in module.FORMS}
        elif source == "letters":
            for task in lists.SEEDS:
                asked[task] = [(one, len(one.answer)) for one in examples(task, count, source)]
        else:
            for task in TASKS[source]:
                asked[task] = [(one, LENGTH) for one in examples(task, count)]

    def right(one, length: int) -> float:
        text = model.decode(system.generate(model.encode(one.prompt), length, rng).tokens)
        return grade(one, text) if isinstance(one, Example) else one.score(text)

    return {task: float(np.mean([right(*each) for each in ones])) for task, ones in asked.items()}
