"""Small encoder-decoders and a non-autoregressive drafter, trained in minutes on two cores.

All learn from sentences of encyclopaedia articles: to undo synthetic errors, or to translate into a made-up language
(`parsimony.benchmarks.sentences`).  The data is the same in form as the benchmarks', from other articles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parsimony import devices
from parsimony.benchmarks.correction import Correction
from parsimony.benchmarks.hub_translation import pairs_of
from parsimony.benchmarks.sentences import Lexicon, corrupt, sentences, word_edits
from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.generalized_aggressive_decoding import GeneralizedAggressiveDecoding
from parsimony.methods.autoregressive.verify import VerifyLoop
from parsimony.models.seq2seq import EncoderDecoder, Seq2Seq, Seq2SeqConfig

SPECIAL = ["<end>", "<unknown>", "<pad>"]
SMOOTHING = 0.1
LONGEST = 80
"""Words of a sentence of a corpus of translations."""
CHECKED = 150
"""Held-out sentences on which a quality floor is checked."""

SMALL = {"vocabulary": 2000, "hidden": 128, "heads": 4, "inner": 512, "encoder_layers": 3, "decoder_layers": 2}
"""`Seq2SeqConfig` of what is trained in minutes."""
CORPUS = 200_000
"""Texts at most that a tokenizer is trained on."""


@dataclass(frozen=True)
class Training:
    """How long and how fast to learn: ``batch`` sentences an update, ``rate`` at the peak."""

    updates: int
    batch: int
    rate: float
    dropout: float
    seed: int


def correction(out: Path, inputs: dict[str, Path], text: str, copied: float, left: float, **settings):
    """A model that corrects `corrupt` sentences; writes weights (float16), configuration and tokenizer.

    Parameters
    ----------
    text : str
        Asset with the articles.
    copied, left : float
        The floor: least share of clean held-out sentences that must stay as they are, and largest share of word edits
        that may be left of those in sentences with 10 % errors (copying leaves all).
    settings
        Fields of `Training`.

    Raises
    ------
    UserError
        When the model is below the floor.
    """
    training, (learnt, held) = Training(**settings), sentences(inputs[text])
    _learn(out, learnt, learnt, _corrupted, training, SMALL)
    _check_correction(out, held, copied, left, training.seed)


def correction_published(
    out: Path, inputs: dict[str, Path], data: str, files: list[str], side: str, shape: dict, text: str, copied: float,
    left: float, **settings,
):  # fmt: skip
    """The same from one side of a corpus of translations, checked on the sentences of ``text`` that are held out.

    Parameters
    ----------
    data, files, side : str
        Asset, its files in Parquet, and the language.
    shape : dict
        Of the network, fields of `Seq2SeqConfig`.
    """
    training = Training(**settings)
    learnt = [pair[side] for pair in pairs_of(inputs[data], files) if len(pair[side].split()) <= LONGEST]
    _learn(out, learnt, learnt[:CORPUS], _corrupted, training, shape)
    _check_correction(out, sentences(inputs[text])[1], copied, left, training.seed)


def _corrupted(texts: list[str], rng) -> tuple[list[str], list[str]]:
    """The texts with errors at one of the benchmark's rates each, and as they are."""
    rates = list(Correction.rates.values())
    return [corrupt(each, float(rng.choice(rates)), rng) for each in texts], texts


def _check_correction(out: Path, held: list[str], copied: float, left: float, seed: int) -> None:
    """Raise a `UserError` when the model in ``out`` is below the floor of `correction`."""
    rng = np.random.default_rng(seed)
    clean = held[:CHECKED]
    damaged = [corrupt(each, 0.1, rng) for each in clean]
    same = np.mean([a == b for a, b in zip(_outputs(out, clean), clean, strict=True)])
    rest = sum(map(word_edits, _outputs(out, damaged), clean)) / max(sum(map(word_edits, damaged, clean)), 1)
    print(f"clean sentences kept: {same:.3f}; word edits left at 10 % errors: {rest:.3f}", flush=True)
    if same < copied or rest > left:
        raise UserError(
            f"the correction model keeps {same:.3f} of clean sentences and leaves {rest:.3f} of the errors; it needs "
            f"at least {copied} and at most {left}: train it with more updates"
        )


def translation(
    out: Path, inputs: dict[str, Path], text: str, lexicon: int, lexicon_seed: int, errors: float, **settings
):
    """A model that translates into the language of a `Lexicon`; otherwise like `correction`.

    The floor is ``errors``, the largest word error rate on held-out sentences.
    """
    training, (learnt, held) = Training(**settings), sentences(inputs[text])
    pairs = _translated(Lexicon(learnt, lexicon, lexicon_seed))
    _learn(out, learnt, learnt + pairs(learnt)[1], pairs, training, SMALL)
    _check_translation(out, *pairs(held[:CHECKED]), errors)


def translation_published(
    out: Path, inputs: dict[str, Path], data: str, files: list[str], test: str, languages: list[str], shape: dict,
    errors: float, **settings,
):  # fmt: skip
    """A model that translates between two languages of a corpus; otherwise like `translation`.

    Parameters
    ----------
    data, files, test : str
        Asset, its files in Parquet to learn from, and the one on which the floor is checked.
    languages : list of str
        Source and target.
    shape : dict
        Of the network, fields of `Seq2SeqConfig`.
    """
    training, learnt = Training(**settings), _parallel(inputs[data], files, languages)
    _learn(out, learnt, [text for pair in learnt[: CORPUS // 2] for text in pair], _sides, training, shape)
    _check_translation(out, *_sides(_parallel(inputs[data], [test], languages)[:CHECKED]), errors)


def _parallel(folder: Path, files: list[str], languages: list[str]) -> list[tuple[str, str]]:
    """Pairs of sentences with at most `LONGEST` words each."""
    first, second = languages
    found = ((pair[first], pair[second]) for pair in pairs_of(folder, files))
    return [pair for pair in found if all(0 < len(text.split()) <= LONGEST for text in pair)]


def _sides(pairs: list[tuple[str, str]], rng=None) -> tuple[list[str], list[str]]:
    """Sources and targets."""
    sources, targets = zip(*pairs, strict=True)
    return list(sources), list(targets)


def _check_translation(out: Path, source: list[str], wanted: list[str], errors: float) -> None:
    """Raise a `UserError` when the model in ``out`` is below the floor of `translation`."""
    rate = sum(map(word_edits, _outputs(out, source), wanted)) / sum(len(each.split()) for each in wanted)
    print(f"word error rate: {rate:.3f}", flush=True)
    if rate > errors:
        raise UserError(
            f"the translation model has a word error rate of {rate:.3f}; it may have at most {errors}: train it with "
            "more updates"
        )


def drafter(
    out: Path,
    inputs: dict[str, Path],
    text: str,
    model: str,
    lexicon: int,
    lexicon_seed: int,
    block: int,
    gained: float,
    **settings,
):
    """The non-autoregressive drafter of GAD for a model of `translation`, whose weights it begins with.

    The decoder has no causal mask.  A cut is drawn uniformly for each sentence: the prefix stays, the ``block`` slots
    behind it are masked, and the loss is on masked slots (block mask).  Glancing: of the slots that the current model
    would get wrong, a share that falls from 0.5 to 0.3 says how many masked slots, drawn at random, show their target
    in the input before the update.  The floor is ``gained``, the fewest tokens a pass that GAD gains with it (k = 10).
    Published: Adam with an inverse-square-root schedule, 300,000 updates of 128,000 tokens; here `_fit`, in minutes.

    Raises
    ------
    UserError
        When the drafter is below the floor.
    """
    learnt, held = sentences(inputs[text])
    pairs = _translated(Lexicon(learnt, lexicon, lexicon_seed))
    _draft(out, inputs[model], learnt, pairs, held[:CHECKED], block, gained, Training(**settings))


def drafter_published(
    out: Path, inputs: dict[str, Path], data: str, files: list[str], test: str, languages: list[str], model: str,
    block: int, gained: float, **settings,
):  # fmt: skip
    """The same for a model of `translation_published`, from the same corpus."""
    learnt = _parallel(inputs[data], files, languages)
    held = _sides(_parallel(inputs[data], [test], languages)[:CHECKED])[0]
    _draft(out, inputs[model], learnt, _sides, held, block, gained, Training(**settings))


def _draft(
    out: Path, model: Path, learnt: list, pairs: Callable, held: list[str], block: int, gained: float,
    training: Training,
) -> None:  # fmt: skip
    """Train and save a drafter, and raise a `UserError` when it is below its floor."""
    teacher = Seq2Seq.load(model, SPECIAL[:1], "float32")
    torch.manual_seed(training.seed)
    network = EncoderDecoder(replace(teacher.decoder.config, causal=False), training.dropout)
    network.load_state_dict(teacher.decoder.state_dict())
    rng = np.random.default_rng(training.seed)

    def loss(source: Tensor, target: Tensor, progress: float) -> Tensor:
        slots, masked = (each.to(target.device) for each in blocks(target.cpu(), network.config, block, rng))
        with torch.no_grad():
            wrong = (network.teach(source, slots).argmax(-1) != target) & masked
        count = (wrong.sum(1) * (0.5 - 0.2 * progress)).long()
        rank = torch.where(masked, torch.rand(masked.shape, device=masked.device), 2.0).argsort(1).argsort(1)
        revealed = masked & (rank < count[:, None])
        logits = network.teach(source, torch.where(revealed, target, slots))
        rest = masked & ~revealed
        return F.cross_entropy(logits[rest], target[rest], label_smoothing=SMOOTHING)

    _fit(network, _batches(teacher.tokenizer.backend, learnt, pairs, training), loss, training)
    network.save(out)
    loop = GeneralizedAggressiveDecoding(10).build(teacher, Inputs({"nat": out}))
    costs = [loop.generate(teacher.encode(each), 200, rng).cost for each in held]
    mean = sum(sum(cost.accepted_per_pass) for cost in costs) / sum(cost.passes for cost in costs)
    print(f"tokens a pass: {mean:.3f}", flush=True)
    if mean < gained:
        raise UserError(
            f"GAD gains {mean:.2f} tokens a pass with this drafter; it needs {gained}: train it with more updates"
        )


def blocks(target: Tensor, config: Seq2SeqConfig, block: int, rng) -> tuple[Tensor, Tensor]:
    """Drafter inputs [B, T] and the masked slots [B, T] bool of padded targets [B, T] that include the end token.

    The prefix before a uniformly drawn cut stays, the ``block`` slots behind it are masked; what lies further is
    hidden as padding, as it is when decoding.
    """
    T = target.shape[1]
    lengths = (target != config.pad).sum(1)
    cuts = torch.from_numpy(rng.integers(0, lengths.numpy()))[:, None]
    at = torch.arange(T)
    masked = (at >= cuts) & (at < cuts + block) & (target != config.pad)
    slots = torch.where(at < cuts, target, torch.full_like(target, config.pad))
    # Masks stand behind the end as well: a drafter does not know where the output ends.
    slots[(at >= cuts) & (at < cuts + block)] = config.unknown
    return slots, masked


def _translated(language: Lexicon) -> Callable:
    return lambda texts, rng=None: (texts, [language.translate(each) for each in texts])


def _learn(out: Path, learnt: list, corpus: list[str], pairs: Callable, training: Training, shape: dict) -> None:
    """Train a tokenizer on ``corpus`` and a causal network on ``pairs`` of what is ``learnt``, and save both."""
    config = Seq2SeqConfig(**shape)
    tokenizer = _tokenizer(corpus, config.vocabulary)
    tokenizer.save(str(out / "tokenizer.json"))
    torch.manual_seed(training.seed)
    network = EncoderDecoder(config, training.dropout)

    def loss(source: Tensor, target: Tensor, progress: float) -> Tensor:
        shifted = F.pad(target[:, :-1], (1, 0), value=network.begin)
        logits = network.teach(source, shifted)
        known = target != network.config.pad
        return F.cross_entropy(logits[known], target[known], label_smoothing=SMOOTHING)

    _fit(network, _batches(tokenizer, learnt, pairs, training), loss, training)
    network.save(out)


def _tokenizer(corpus: list[str], vocabulary: int):
    """Joint byte-level BPE of source and target."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def _batches(tokenizer, texts: list, pairs: Callable, training: Training) -> Iterator[tuple[Tensor, Tensor]]:
    """Padded (source, target) ids for ever, both with the end token; sentences of like length together."""
    size, end, rng = training.batch, [SPECIAL.index("<end>")], np.random.default_rng(training.seed)
    while True:
        order = rng.permutation(len(texts))
        for chunk in np.array_split(order, max(len(order) // (16 * size), 1)):
            sides = pairs([texts[at] for at in chunk], rng)
            sources, targets = ([e.ids + end for e in tokenizer.encode_batch(side)] for side in sides)
            ranked = sorted(range(len(chunk)), key=lambda at: len(targets[at]))
            groups = [ranked[at : at + size] for at in range(0, len(ranked), size)]
            for n in rng.permutation(len(groups)):
                yield _padded([sources[at] for at in groups[n]]), _padded([targets[at] for at in groups[n]])


def _padded(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [SPECIAL.index("<pad>")] * (longest - len(row)) for row in rows])


def _fit(network: EncoderDecoder, batches, loss: Callable[[Tensor, Tensor, float], Tensor], training: Training) -> None:
    """AdamW with a warm-up and a linear decay to 2 % of the peak rate; gradients clipped to norm 1."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.rate, betas=(0.9, 0.98), weight_decay=0.01)
    updates, where = training.updates, devices.held()[0]
    warm = max(min(200, updates // 8), 1)
    network.to(where).train()
    network.device = torch.device(where)
    for n, (source, target) in zip(range(updates), batches, strict=False):
        source, target = source.to(where), target.to(where)
        for group in optimizer.param_groups:
            group["lr"] = training.rate * min(1, (n + 1) / warm) * max(0.02, 1 - n / updates)
        value = loss(source, target, n / updates)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if (n + 1) % 100 == 0:
            print(f"update {n + 1}/{updates}: loss {value.item():.3f}", flush=True)
    network.eval()


def _outputs(folder: Path, texts: list[str]) -> list[str]:
    """Greedy outputs of the model that was just saved."""
    model = Seq2Seq.load(folder, SPECIAL[:1], "float32")
    loop, rng = VerifyLoop(model), np.random.default_rng(0)
    return [model.decode(loop.generate(model.encode(text), 200, rng).tokens) for text in texts]
