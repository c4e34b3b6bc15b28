"""The quantities that are reported: each as a ratio of totals of recorded metrics, by family."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parsimony.channel_orders import KEPT, ORDERS


@dataclass(frozen=True)
class Quantity:
    """A ratio of totals over items: ``(sum of over / sum of under)``, divided by a second ratio if there is one.

    Attributes
    ----------
    title, unit : str
    better : {"higher", "lower", ""}
    over : tuple of str
        Metrics whose totals are added.
    under : str
        Metric of the denominator; "" counts the items.
    against : tuple (over, under), optional
        The same ratio of the reference, by which the first is divided (a paired speed-up).
    scale : callable, optional
        Last step, such as the exponential of a mean log-likelihood.
    curve : str, optional
        Quality whose curve over all points of a method is compared with the anchor's (`rate_distortion`).
    """

    title: str
    unit: str
    better: str
    over: tuple[str, ...]
    under: str = ""
    against: tuple[str, str] | None = None
    scale: object = None
    curve: str = ""

    @property
    def clocked(self) -> bool:
        """Whether it is a time or a rate by itself, so that another device gives another one; paired ones are not."""
        return self.against is None and any(metric.endswith("seconds") for metric in (*self.over, self.under))


QUANTITIES = {
    "mean_accepted_tokens": Quantity("Mean accepted tokens", "tokens/pass", "higher", ("step_tokens",), "passes"),
    "passes_per_token": Quantity("Target passes per token", "passes/token", "lower", ("passes",), "step_tokens"),
    "draft_acceptance": Quantity("Share of drafted tokens accepted", "", "higher", ("accepted",), "drafted"),
    "drafted_per_pass": Quantity("Drafted tokens per pass", "tokens/pass", "", ("drafted",), "passes"),
    "tokens_per_second": Quantity("Tokens per second", "tokens/s", "higher", ("tokens",), "seconds"),
    "speedup": Quantity(
        "Speed-up", "x", "higher", ("tokens",), "seconds", against=("reference_tokens", "reference_seconds")
    ),
    "speedup_decoding": Quantity(
        "Speed-up without prefill",
        "x",
        "higher",
        ("tokens",),
        "decode_seconds",
        against=("reference_tokens", "reference_decode_seconds"),
    ),
    "speedup_fastest": Quantity(
        "Speed-up over the fastest dtype", "x", "higher", ("tokens",), "seconds", ("fastest_tokens", "fastest_seconds")
    ),
    "speedup_peer": Quantity(
        "Speed-up over the peer", "x", "higher", ("tokens",), "seconds", ("peer_tokens", "peer_seconds")
    ),
    "speedup_alone": Quantity(
        "Speed-up over batch 1 of the reference",
        "x",
        "higher",
        ("tokens",),
        "seconds",
        ("alone_tokens", "alone_seconds"),
    ),
    "draft_share": Quantity("Share of time spent drafting", "", "lower", ("draft_seconds",), "seconds"),
    "exact_share": Quantity("Items equal to the reference, or tied", "", "higher", ("equal", "tie")),
    "ties": Quantity("Share of items that tie", "", "", ("tie",)),
    "divergence_rate": Quantity("Items that diverge from the reference", "", "lower", ("diverged",)),
    "logit_gap": Quantity("Mean logit gap where outputs diverge", "", "", ("logit_gap",)),
    "copied_share": Quantity("Share of tokens copied from the conversation", "", "", ("copied_tokens",), "tokens"),
    "edit_similarity": Quantity("Similarity to the edited function", "", "higher", ("edit_similarity",)),
    "exact_match": Quantity("Outputs entirely right", "", "higher", ("exact_match",)),
    "word_error_rate": Quantity("Word error rate", "", "lower", ("word_edits",), "reference_words"),
    "errors_left": Quantity("Word edits left, of those in the source", "", "lower", ("word_edits",), "source_edits"),
    "equal_answers": Quantity("Answers equal to those of batch 1", "", "higher", ("exact",), "sequences"),
    "partial_match": Quantity("Share of tokens before the first difference", "", "higher", ("partial",), "sequences"),
    "tokens_per_batch_pass": Quantity(
        "Tokens per pass of the batch", "tokens/pass", "higher", ("step_tokens",), "batch_passes"
    ),
    "grouping_rate": Quantity("Passes that needed no realignment", "", "higher", ("grouped",), "batch_passes"),
    "realign_share": Quantity("Share of time spent realigning", "", "lower", ("realign_seconds",), "seconds"),
    "realign_per_pass": Quantity("Realignment per pass", "s/pass", "lower", ("realign_seconds",), "batch_passes"),
    "cache_bytes": Quantity("Live cache", "bytes", "lower", ("cache_bytes",)),
    "state_bytes": Quantity("Drafter's own state", "bytes", "lower", ("state_bytes",)),
    "nll_per_token": Quantity("Negative log-likelihood", "nats/token", "lower", ("nll",), "tokens"),
    "perplexity": Quantity("Perplexity", "", "lower", ("nll",), "tokens", scale=np.exp),
    **{
        f"{name}_ahead_{n}": Quantity(
            f"Right {rank} {n} tokens ahead", "", "higher", (f"{metric}_{n}",), f"guesses_{n}"
        )
        for name, rank, metric in (("top1", "first guess", "first_right"), ("top10", "among 10 guesses", "any_right"))
        for n in (2, 3, 4)
    },
    "trained_share": Quantity("Trained share of parameters", "", "lower", ("trained_parameters",), "model_parameters"),
    "trained_memory": Quantity("Trained share of memory", "", "lower", ("trained_bytes",), "model_bytes"),
    "bits_per_byte": Quantity("Bits per byte", "bits/byte", "lower", ("nll",), "bytes", scale=lambda x: x / np.log(2)),
    "forward_passes": Quantity("Forward passes a prompt", "passes", "lower", ("forward_passes",)),
    "rows_per_prompt": Quantity("Rows a prompt", "tokens", "lower", ("rows",), "prompts"),
    "seconds_per_prompt": Quantity("Seconds a prompt", "s", "lower", ("seconds",), "prompts"),
    "perplexity_best": Quantity(
        "Perplexity of the best draft", "", "lower", ("best_nll",), "best_tokens", scale=np.exp
    ),
    "agreement": Quantity("True tokens that a draft begins with", "tokens", "higher", ("agreement",)),
    "coverage_per_pass": Quantity(
        "True next token covered, a pass", "1/pass", "higher", ("covered",), "forward_passes"
    ),
    "agreement_per_pass": Quantity(
        "True tokens covered, a pass", "tokens/pass", "higher", ("agreement",), "forward_passes"
    ),
    "agreement_per_row": Quantity("True tokens covered, a row", "", "higher", ("agreement",), "rows"),
    "distinct_bigrams": Quantity("Distinct bigrams of the drafts", "", "higher", ("distinct_bigrams",), "bigrams"),
    "coherence": Quantity("Cosine of drafts and prefix", "", "higher", ("coherence",)),
    "coherence_true": Quantity("Cosine of true continuation and prefix", "", "", ("true_coherence",)),
    "similarity": Quantity("Cosine of drafts and true continuation", "", "higher", ("similarity",)),
    "similarity_first": Quantity(
        "Cosine of the first draft and the true continuation", "", "higher", ("similarity_first",)
    ),
    "similarity_best": Quantity(
        "Cosine of the nearest draft and the true continuation", "", "higher", ("similarity_best",)
    ),
    "linearity": Quantity(
        "Linearity of the network on the drafts", "cosine", "", ("linearity_sum",), "linearity_steps"
    ),
    "linearity_first": Quantity("Linearity at the first step", "cosine", "", ("linearity_first",)),
    "linearity_last": Quantity("Linearity at the last step", "cosine", "", ("linearity_last",)),
}
QUANTITIES |= {
    "task_score": Quantity("Score", "", "higher", ("score",)),
    "strict_score": Quantity("Score, read strictly", "", "higher", ("strict_score",)),
    "ideal_score": Quantity("Score of the exact model", "", "higher", ("ideal_score",)),
    "tokens_per_step": Quantity("Tokens a step", "tokens/pass", "higher", ("unmasked",), "forward_passes"),
    "ideal_gap": Quantity("Score less that of the exact model", "", "", ("gap",)),
    "oracle_score": Quantity("Score of the best point for each item", "", "higher", ("oracle_score",)),
    "oracle_tokens_per_step": Quantity(
        "Tokens a step of the best point for each item", "tokens/pass", "higher", ("unmasked",), "oracle_passes"
    ),
    "pass_ratio": Quantity("Passes, of the reference's", "", "lower", ("forward_passes",), "reference_passes"),
    "answer_share": Quantity("Share of the window that is the answer", "", "", ("tokens",), "unmasked"),
    "total_correlation": Quantity("Total correlation of right answers", "bits", "", ("correlation",)),
    "class_agreement": Quantity("Images whose class is seen", "", "higher", ("right_class",), "images"),
    "frechet_distance": Quantity("Fréchet distance to real ones", "", "lower", ("frechet",)),
    "rows_per_image": Quantity("Rows an image", "tokens", "lower", ("rows",), "images"),
    "rows_per_token": Quantity("Rows a token", "", "lower", ("rows",), "unmasked"),
    "parses": Quantity("Answers that parse", "", "higher", ("parses",)),
    "rejections_per_token": Quantity("Rejected tokens a token", "", "lower", ("resamples",), "tokens"),
    "check_share": Quantity("Share of time spent checking", "", "lower", ("check_seconds",), "seconds"),
    "late_share": Quantity("Passes that hold back what is certain", "", "lower", ("late_passes",), "forward_passes"),
    "early_share": Quantity("Passes that err in doubt", "", "lower", ("early_passes",), "forward_passes"),
    "overconfidence": Quantity("Confidence less correctness", "", "", ("excess",), "written"),
    **{
        f"right_near_{d}": Quantity(f"Right at distance {at} from an anchor", "", "", (f"near_{d}_right",), f"near_{d}")
        for d, at in ((1, "1"), (2, "2"), (4, "3-4"), (8, "5-8"), (16, "9-16"))
    },
    "words_included": Quantity("Sentences with all words", "", "higher", ("words_included",)),
}
QUANTITIES |= {
    "cache_share": Quantity("Bytes held, of the full cache's", "", "lower", ("cache_bytes",), "whole_bytes"),
    "bits_per_element": Quantity(
        "Bits an element of the cache", "bits", "lower", ("compressed_bytes",), "whole_bytes", scale=lambda x: 16 * x
    ),
    "encode_per_token": Quantity("Encoding a context token", "s/token", "lower", ("encode_seconds",), "tokens"),
    "decode_per_token": Quantity("Decoding a context token", "s/token", "lower", ("decode_seconds",), "tokens"),
    "difference_gain": Quantity(
        "Mean square of values over that of differences", "x", "higher", ("value_energy",), "difference_energy"
    ),
    "first_token": Quantity("Simulated time to first token", "s", "lower", ("first_token_seconds",), "deliveries"),
    "slo_violations": Quantity("Simulated deliveries that are late", "", "lower", ("late",), "deliveries"),
    "text_share": Quantity("Chunks sent as text", "", "", ("text_chunks",), "chunks"),
    "kl_divergence": Quantity("KL to the full cache", "nats/token", "lower", ("divergence",), "scored"),
    "top1_agreement": Quantity("Same prediction as the full cache", "", "higher", ("same_top",), "scored"),
    "nll_per_scored_token": Quantity("NLL behind the context", "nats/token", "lower", ("nll",), "scored"),
    "compress_per_token": Quantity("Compression a context token", "s/token", "lower", ("compress_seconds",), "tokens"),
    "upkeep_per_step": Quantity("Upkeep a decoding step", "s/step", "lower", ("upkeep_seconds",), "steps"),
    "moved_per_step": Quantity("Bytes moved a decoding step", "bytes/step", "lower", ("moved_bytes",), "steps"),
    "retrievals_per_step": Quantity("Retrievals a decoding step", "1/step", "lower", ("retrievals",), "steps"),
    "locality": Quantity("Jaccard similarity of fetches in succession", "", "", ("overlap",), "fetched_again"),
    "agreed_tokens": Quantity("Tokens before the first difference", "tokens", "higher", ("agreed",)),
    "final_share": Quantity(
        "Bytes held behind the answer, of the full cache's", "", "lower", ("final_bytes",), "final_whole_bytes"
    ),
    "peak_bytes": Quantity("Most bytes held", "bytes", "lower", ("peak_bytes",)),
    "passage_gain": Quantity("Gained by the passage", "nats/token", "higher", ("gained",), "scored"),
}
QUANTITIES |= {
    f"perplexity_draft_{n}": Quantity(
        f"Perplexity of draft {n}", "", "lower", (f"draft_{n}_nll",), f"draft_{n}_tokens", scale=np.exp
    )
    for n in (1, 2, 3)
}
QUANTITIES |= {
    f"coverage_{m}_at_{j}": Quantity(f"True next {m} in {j} drafts", "", "higher", (f"hit_{m}_at_{j}",))
    for m in (1, 2, 3)
    for j in (1, 2, 3)
}
QUANTITIES |= {
    "rows_read": Quantity("Tokens run to read contexts", "tokens", "lower", ("rows",), "readings"),
    "pairs_read": Quantity("Pairs attended to read contexts", "pairs", "lower", ("pairs",), "readings"),
    "read_seconds": Quantity("Reading contexts", "s", "lower", ("read_seconds",), "readings"),
    "key_cosine": Quantity("Cosine of keys behind an edit", "", "higher", ("key_cosine",), "compared"),
    "value_cosine": Quantity("Cosine of values behind an edit", "", "higher", ("value_cosine",), "compared"),
    "rerun_share": Quantity("Tokens run, of the edited context's", "", "lower", ("rows",), "edited_tokens"),
    "similarity_lost": Quantity("Lost of the next line's similarity", "points", "lower", ("similarity_lost",)),
    "same_line": Quantity("Same next line as a context run anew", "", "higher", ("same_line",)),
    "edit_seconds": Quantity("Updating an edited context", "s", "lower", ("edit_seconds",), "edited"),
}
QUANTITIES |= {
    f"rank_{n}": Quantity(f"Rank correlation of {t}", "", "higher", (f"rank_{n}",)) for n, t in ORDERS.items()
}
QUANTITIES |= {
    f"common_{name}": Quantity(f"Top quarter found by {title}", "", "higher", (f"common_{name}",), "top")
    for name, title in ORDERS.items()
}
QUANTITIES |= {
    f"psnr_{name}_{share}": Quantity(
        f"PSNR with {share} % of the channels, by {title}", "dB", "higher", (f"error_{name}_{share}",), "values",
        scale=lambda x: 10 * np.log10(255**2 / x),
    )
    for name, title in ORDERS.items()
    for share in KEPT
}  # fmt: skip
QUANTITIES |= {
    "top_share": Quantity("Importance in a quarter of the channels", "", "", ("top_importance",), "importance"),
    "core_share": Quantity("Channels in the core by weights", "", "", ("core",), "channels"),
    "dead_share": Quantity("Dead channels", "", "", ("dead",), "channels"),
    "dead_ranked_high": Quantity("Dead channels that the score ranks high", "", "lower", ("dead_ranked_high",), "dead"),
    "sample_shift": Quantity("Shift of samples towards the prior", "std", "lower", ("shift",), "values"),
    "sample_spread": Quantity("Mean square of samples about the mean, of its variance", "", "", ("squares",), "values"),
    "bits_over_divergence": Quantity("Bits a sample beyond its divergence", "bits", "lower", ("bits_beyond",), "draws"),
    "index_over_divergence": Quantity(
        "Logarithm of a sample's number less its divergence", "bits", "lower", ("index_beyond",), "draws"
    ),
}
QUANTITIES |= {
    **{
        f"{part}bits_per_dimension": Quantity(title, "bits", "lower", (f"{part}bits",), f"{part}values")
        for part, title in (
            ("", "Bits per dimension"), ("sheet_", "Bits per dimension, one sheet"),
            ("noise_", "Bits per dimension, uniform noise"),
        )
    },
    "exact_streams": Quantity("Streams that give back every value", "", "higher", ("exact_items",), "streams"),
    "decoded_streams": Quantity("Streams that decode", "", "higher", ("decoded_items",), "streams"),
    "bits_per_pixel": Quantity("Bits per pixel", "bits", "lower", ("bits",), "pixels"),
    "payload_per_pixel": Quantity("Bits per pixel without file headers", "bits", "lower", ("payload_bits",), "pixels"),
    "psnr": Quantity("PSNR of RGB", "dB", "higher", ("psnr",)),
    "ms_ssim_db": Quantity("MS-SSIM", "dB", "higher", ("ms_ssim_db",)),
    "bd_rate_psnr": Quantity("BD-rate against JPEG, PSNR", "%", "lower", (), curve="psnr"),
    "bd_rate_ms_ssim": Quantity("BD-rate against JPEG, MS-SSIM", "%", "lower", (), curve="ms_ssim_db"),
    "encode_rate": Quantity("Encoding", "MB/s", "higher", ("megabytes",), "encode_seconds"),
    "decode_rate": Quantity("Decoding", "MB/s", "higher", ("megabytes",), "decode_seconds"),
    "encode_seconds": Quantity("Encoding an item", "s", "lower", ("encode_seconds",), "streams"),
    "codec_bytes": Quantity("Held by both sides beforehand", "bytes", "lower", ("codec_bytes",)),
}  # fmt: skip
QUANTITIES |= {
    "encode_speedup": Quantity(
        "Faster to encode than the reference", "x", "higher", ("values",), "encode_seconds",
        against=("reference_values", "reference_encode_seconds"),
    ),
    "decode_speedup": Quantity(
        "Faster to decode than the reference", "x", "higher", ("values",), "decode_seconds",
        against=("reference_values", "reference_decode_seconds"),
    ),
    "rate_ratio": Quantity("Bits, of the reference's", "", "lower", ("bits",), "reference_bits"),
    "variables": Quantity("Variables", "", "", ("variables",), "circuits"),
    "naive_to_path": Quantity("Path evaluation faster than naive", "x", "higher", ("naive_seconds",), "path_seconds"),
    "naive_to_once": Quantity("Evaluation once faster than naive", "x", "higher", ("naive_seconds",), "once_seconds"),
    "naive_evaluations": Quantity("Circuits evaluated, naive", "", "lower", ("naive_evaluations",), "edges"),
    "path_evaluations": Quantity("Circuits evaluated, by path", "", "lower", ("path_evaluations",), "edges"),
    "once_evaluations": Quantity("Circuits evaluated, once", "", "lower", ("once_evaluations",), "edges"),
    "code_overhead": Quantity(
        "Code above theory, a stream an image", "", "lower", ("code_bits",), "ideal_bits", scale=lambda x: x - 1
    ),
    "one_code_overhead": Quantity(
        "Code above theory, one stream", "", "lower", ("one_code_bits",), "ideal_bits", scale=lambda x: x - 1
    ),
}  # fmt: skip


def decibels(distance):
    """-10 log10 of a distance, at most 100 dB, so that more is more alike."""
    return -10 * np.log10(np.maximum(distance, 1e-10))


QUANTITIES |= {
    "bits_per_sample": Quantity("Bits per sample", "bits", "lower", ("bits",), "clip_samples"),
    "accuracy": Quantity("Right", "", "higher", ("right",), "labelled"),
    "accuracy_gained": Quantity("Right, more than on originals", "", "higher", ("right_gained",), "labelled"),
    "accuracy_jpeg_trained": Quantity("Right, trained on JPEG", "", "higher", ("right_jpeg_trained",), "labelled"),
    "accuracy_gained_jpeg_trained": Quantity(
        "Right, trained on JPEG, more than on originals", "", "higher", ("right_gained_jpeg_trained",), "labelled"
    ),
    "accuracy_small": Quantity("Right, small network", "", "higher", ("right_small",), "labelled"),
    "accuracy_gained_small": Quantity(
        "Right, small network, more than on originals", "", "higher", ("right_gained_small",), "labelled"
    ),
    "agreement_with_clean": Quantity("Same class as the original", "", "higher", ("agrees",)),
    "kl_to_clean": Quantity("KL from the original", "nats", "lower", ("kl",)),
    "character_error_rate": Quantity("Character error rate", "", "lower", ("character_edits",), "characters"),
    "character_errors_gained": Quantity(
        "Character errors more than on originals", "", "lower", ("character_edits_gained",), "characters"
    ),
    "word_errors_gained": Quantity(
        "Word errors more than on originals", "", "lower", ("word_edits_gained",), "reference_words"
    ),
    "word_error_rate_small": Quantity(
        "Word error rate, small network", "", "lower", ("word_edits_small",), "reference_words"
    ),
    "ssim": Quantity("SSIM", "", "higher", ("ssim",)),
    "feature_similarity": Quantity("Deep similarity", "dB", "higher", ("feature_distance",), scale=decibels),
    "control_similarity": Quantity(
        "Similarity of random features", "dB", "higher", ("control_distance",), scale=decibels
    ),
    "bd_rate_features": Quantity("BD-rate against JPEG, deep similarity", "%", "lower", (), curve="feature_similarity"),
    "snr": Quantity(
        "Signal to noise", "dB", "higher", ("signal_energy",), "error_energy", scale=lambda x: 10 * np.log10(x)
    ),
    "mel_similarity": Quantity("Similarity of log-mel spectrograms", "dB", "higher", ("mel_distance",), scale=decibels),
    "state_similarity": Quantity("Similarity of Whisper's states", "dB", "higher", ("state_distance",), scale=decibels),
    "linear_correlation": Quantity("Pearson's correlation over operating points", "", "higher", ()),
    "rank_correlation": Quantity("Spearman's correlation over operating points", "", "higher", ()),
}
