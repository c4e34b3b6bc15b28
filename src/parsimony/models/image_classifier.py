"""ImageNet classifiers of the hub, with the preprocessing that comes with each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from parsimony import devices


class ImageClassifier:
    """A classifier as `transformers` loads it, on the first GPU that this process holds.

    Parameters
    ----------
    folder : Path
        With ``config.json``, ``preprocessor_config.json`` and weights in safetensors.
    """

    def __init__(self, folder: Path):
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        self.prepare = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        network = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self.device = devices.held()[0]
        self.network = network.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def classify(self, image: np.ndarray) -> Tensor:
        """Log probabilities [classes] float64 of an image [H, W, 3] uint8."""
        pixels = self.prepare(image, return_tensors="pt", input_data_format="channels_last").pixel_values
        return self.network(pixel_values=pixels.to(self.device)).logits[0].cpu().double().log_softmax(-1)
