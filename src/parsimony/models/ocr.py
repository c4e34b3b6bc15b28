"""Reading printed lines: the PP-OCRv4 detector and recogniser (PaddleOCR) as ONNX networks.

Detection follows DB (Liao et al., 2019, arXiv 1911.08947): regions of the probability map above a threshold, grown by
the distance area * ratio / perimeter by which training shrank them.  Pages here are upright, so a region's box is
upright too, and the direction classifier that comes with the networks is not needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

THRESHOLD, SURE, GROW = 0.3, 0.5, 1.6
"""Of a pixel of text, of the mean over a region, and the ratio of growing: those that PP-OCRv4 is used with."""
HEIGHT = 48
"""Pixels of a line as the recogniser sees it."""
WIDEST = 40
"""Lines wider than so many heights are not looked at: no region of text is like that."""
SMALLEST = 3


class Ocr:
    """Reads pages, one thread.

    Parameters
    ----------
    folder : Path
        With ``detector.onnx`` and ``recogniser.onnx``, whose metadata holds the alphabet.
    """

    def __init__(self, folder: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.detector, self.recogniser = (
            onnxruntime.InferenceSession(str(Path(folder) / f"{name}.onnx"), options, ["CPUExecutionProvider"])
            for name in ("detector", "recogniser")
        )
        alphabet = self.recogniser.get_modelmeta().custom_metadata_map["character"].splitlines()
        self.letters = np.array(["", *alphabet, " "], dtype=object)  # 0 is CTC's blank

    def read(self, page: np.ndarray) -> str:
        """Lines of a page (uint8 [H, W, 3]) from top to bottom, joined by spaces."""
        return " ".join(
            filter(None, (self.line(page[top:bottom, left:right]) for top, bottom, left, right in self.boxes(page)))
        )

    def boxes(self, page: np.ndarray) -> list[tuple[int, int, int, int]]:
        """Upright boxes (top, bottom, left, right) of text, in reading order."""
        height, width = page.shape[:2]
        grid = [max(32, round(side / 32) * 32) for side in (height, width)]
        found = self.detector.run(None, {"x": _network_input(page, *grid)[None]})[0][0, 0]
        regions, _ = ndimage.label(found > THRESHOLD, np.ones((3, 3)))
        boxes = []
        for n, place in enumerate(ndimage.find_objects(regions), 1):
            mine = regions[place] == n
            h, w = mine.shape
            if min(h, w) < SMALLEST or found[place][mine].mean() < SURE:
                continue
            by = h * w * GROW / (2 * (h + w))
            edges = [place[0].start - by, place[0].stop + by, place[1].start - by, place[1].stop + by]
            scale = (height / grid[0], height / grid[0], width / grid[1], width / grid[1])
            limits = (height, height, width, width)
            top, bottom, left, right = (
                int(np.clip(round(e * s), 0, end)) for e, s, end in zip(edges, scale, limits, strict=True)
            )
            if bottom - top >= SMALLEST and SMALLEST <= right - left <= WIDEST * (bottom - top):
                boxes.append((top, bottom, left, right))
        return _reading_order(boxes)

    def line(self, image: np.ndarray) -> str:
        """What a line (uint8 [h, w, 3]) says: the likeliest symbol of each step, repeats and blanks left out (CTC)."""
        width = max(HEIGHT, -(-HEIGHT * image.shape[1] // image.shape[0]))
        padded = np.zeros((3, HEIGHT, max(320, width)), np.float32)
        padded[:, :, :width] = _network_input(image, HEIGHT, width)
        steps = self.recogniser.run(None, {"x": padded[None]})[0][0].argmax(-1)
        kept = steps[np.concatenate(([True], steps[1:] != steps[:-1]))]
        return "".join(self.letters[kept]).strip()


def _network_input(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Values -1 to 1, [3, height, width] in the order blue, green, red, as these networks were trained."""
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(resized[:, :, ::-1].transpose(2, 0, 1).astype(np.float32) / 127.5 - 1)


def _reading_order(boxes: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Boxes line by line: those whose centre lies inside the first one of a line belong to it, from left to right."""
    lines: list[list[tuple[int, int, int, int]]] = []
    for box in sorted(boxes, key=lambda box: box[0] + box[1]):
        if lines and lines[-1][0][0] <= (box[0] + box[1]) / 2 <= lines[-1][0][1]:
            lines[-1].append(box)
        else:
            lines.append([box])
    return [box for line in lines for box in sorted(line, key=lambda box: box[2])]
