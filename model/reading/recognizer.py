"""Reads the texts in image files with a trained network."""

import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.config import TrialConfig
from model.data.alphabet import Alphabet
from model.data.image_files import SUFFIXES, read_image, to_color
from model.data.preparation import Prepared, pad, prepare
from model.network import ctc
from model.network.crnn import CRNN
from model.system.files import reason
from model.training import checkpoints

Failed = Callable[[str], None]  # called with a sentence that names a file and what is wrong with it


class Recognizer:
    """A trained network, ready to read images."""

    def __init__(self, config: TrialConfig, network: CRNN) -> None:
        self.config, self.network = config, network.eval()
        self.alphabet = Alphabet(config.image.characters)

    @classmethod
    def from_checkpoint(cls, path: Path) -> Self:
        """Loads a best.pt. Raises OSError, and ValueError if the file is not a valid checkpoint."""
        return cls(*checkpoints.load_network(path))

    def prepare(self, image: Image.Image) -> Prepared:
        """Converts an image of any Pillow mode to uint8 (C, H, W) in the size and colours of the training images."""
        return prepare(to_color(image, self.config.image.channels), self.config.image)

    @property
    def batch_size(self) -> int:
        """Images to read at once: 64, or fewer if their largest feature map would take more than 256 MB."""
        return max(1, min(64, 2**28 // checkpoints.feature_map_bytes(self.config)))

    @torch.no_grad()
    def read(self, images: Tensor, widths: Tensor | None = None) -> list[tuple[str, float]]:
        """Returns text and confidence (0…1) of each image; images are uint8 (N, C, H, W).

        `widths` (N,) are those without padding, None if no image is padded.

        The confidence is the probability that CTC gives to the text. It is 0 for an empty text, because the network was
        not trained on images without text.
        """
        logits = self.network(images, widths)  # (T, N, K)
        steps = self.network.time_steps(widths)
        decoded = ctc.greedy_decode(logits, steps)  # (N, T)
        losses = ctc.ctc_losses(logits, decoded, steps)
        confidence = (-losses).exp().clamp(max=1) * (ctc.label_lengths(decoded) > 0)
        texts = [self.alphabet.decode(row) for row in decoded.tolist()]
        return list(zip(texts, confidence.tolist(), strict=True))

    def read_files(self, files: Iterable[Path], failed: Failed) -> Iterator[tuple[Path, str, float]]:
        """Yields file, text and confidence of each image, in order.

        Skips files that can't be read and calls `failed` with a sentence for each. At most `batch_size` images are in
        memory at once.
        """
        images = self._images(files, failed)
        while batch := list(islice(images, self.batch_size)):
            readings = self.read(*stacked([image for _, image in batch]))
            for (file, _), (text, confidence) in zip(batch, readings, strict=True):
                yield file, text, confidence

    def _images(self, files: Iterable[Path], failed: Failed) -> Iterator[tuple[Path, Prepared]]:
        for file in files:
            try:
                image = prepare(read_image(file, self.config.image.channels), self.config.image)
            except (OSError, ValueError) as error:
                failed(str(error))
            else:
                yield file, image


def stacked(images: Sequence[Prepared]) -> tuple[Tensor, Tensor | None]:
    """Images as a batch for `Recognizer.read`: (N, C, H, W), and the widths without padding, None if none is padded."""
    widest = max(image.pixels.shape[2] for image in images)
    pixels = [pad(image.pixels, widest) for image in images]
    widths = torch.tensor([image.width for image in images])
    return torch.from_numpy(np.stack(pixels)), None if (widths == widest).all() else widths


def image_files(paths: Iterable[Path], failed: Failed) -> Iterator[Path]:
    """Yields files as they are given, and for a folder the images in it, sorted by name, without subfolders.

    Calls `failed` with a sentence for each path that can't be read and each folder without images.
    """
    for path in paths:
        try:
            if not stat.S_ISDIR(path.stat().st_mode):
                yield path
                continue
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.is_dir())
        except (OSError, ValueError) as error:
            failed(f"{path}: {reason(error)}")
            continue
        yield from files
        if not files:
            failed(f"{path}: no images in this folder ({', '.join(sorted(SUFFIXES))})")
