"""Whisper (Radford et al., 2022, arXiv 2212.04356) of the hub: greedy transcripts of English, and encoder states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from parsimony import devices
from parsimony.models.whisper import RATE, WINDOW, Heard

PROMPT = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")


class HubWhisper:
    """A multilingual Whisper as `transformers` loads it, float32, on the first GPU that this process holds.

    Parameters
    ----------
    folder : Path
        With ``config.json``, ``generation_config.json``, ``tokenizer.json`` and weights in safetensors.
    """

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer
        from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

        network = WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self.device = devices.held()[0]
        self.network = network.float().eval().requires_grad_(False).to(self.device)
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.spectrogram = WhisperFeatureExtractor(feature_size=network.config.num_mel_bins)
        settings = json.loads((Path(folder) / "generation_config.json").read_text())
        self.never = settings.get("suppress_tokens") or []
        self.not_first = settings.get("begin_suppress_tokens") or []
        self.prompt = [self.tokenizer.token_to_id(token) for token in PROMPT]
        self.end = self.tokenizer.token_to_id("<|endoftext|>")

    @torch.no_grad()
    def hear(self, clip: np.ndarray) -> Heard:
        """What a clip (int16 [N] at 16 kHz) says; the network's input and states where the clip is."""
        if clip.dtype != np.int16 or not 0 < len(clip) <= WINDOW:
            raise ValueError(f"a clip is int16 [N] with 0 < N <= {WINDOW}, not {clip.dtype} {list(clip.shape)}")
        x = clip.astype(np.float32) / 32768
        mel = self.spectrogram(x, sampling_rate=RATE, return_tensors="pt").input_features
        states = self.network.model.encoder(mel.to(self.device))
        frames = -(-len(clip) // 320)  # hop 160 at stride 2
        text = self.tokenizer.decode(self._tokens(states)).strip()
        return Heard(text, mel[0, :, : 2 * frames].numpy(), states.last_hidden_state[0, :frames].cpu().numpy())

    def _tokens(self, states) -> list[int]:
        """The likeliest token behind those before, until the end; those that stand for no speech are never said."""
        found, given, past = [], self.prompt, None
        while len(found) < self.network.config.max_target_positions // 2:
            ids = torch.tensor([given], device=self.device)
            out = self.network(encoder_outputs=states, decoder_input_ids=ids, past_key_values=past, use_cache=True)
            logits, past = out.logits[0, -1], out.past_key_values
            logits[[*self.never, *([] if found else self.not_first)]] = -torch.inf
            given = [int(logits.argmax())]
            if given[0] == self.end:
                break
            found += given
        return found
