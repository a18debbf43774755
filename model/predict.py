"""`python -m model.predict CHECKPOINT IMAGE|FOLDER…` prints file, text and confidence, tab-separated."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from model import checkpoints, ctc
from model.alphabet import Alphabet
from model.captchas import to_array
from model.config import TrialConfig
from model.crnn import CRNN
from model.streams import forgiving_streams

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}


class Recognizer:
    """A trained network, ready to read images."""

    def __init__(self, config: TrialConfig, network: CRNN) -> None:
        self.config, self.network = config, network.eval()
        self.alphabet = Alphabet(config.captcha.characters)

    @classmethod
    def from_checkpoint(cls, path: Path) -> Self:
        """Raises OSError or ValueError."""
        state = checkpoints.load(path)
        config = TrialConfig.model_validate(state["config"])
        network = CRNN(config)
        network.load_state_dict(state["network"])
        return cls(config, network)

    def prepare(self, image: Image.Image) -> Tensor:
        """uint8 (C, H, W), at the size and in the colours the network was trained on."""
        captcha = self.config.captcha
        image = image.convert("L" if captcha.color == "grey" else "RGB")
        if image.size != (captcha.width, captcha.height):
            image = image.resize((captcha.width, captcha.height), Image.Resampling.BOX)
        return torch.from_numpy(to_array(image).copy())

    @torch.no_grad()
    def read(self, images: Tensor) -> list[tuple[str, float]]:
        """uint8 (N, C, H, W) → the text of each and the probability of its best path, 0…1."""
        logits = self.network(images)  # (T, N, K)
        confidence = logits.log_softmax(2).amax(2).sum(0).exp()
        texts = [self.alphabet.decode(row) for row in ctc.greedy_decode(logits).tolist()]
        return list(zip(texts, confidence.tolist(), strict=True))


def image_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Files as they are given; of a folder the images in it, sorted. Raises FileNotFoundError."""
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
        elif path.exists():
            yield path
        else:
            raise FileNotFoundError(f"{path}: no such image or folder")


@forgiving_streams()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model.predict", description="Read captcha images.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a sweep's best.pt")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE|FOLDER")
    options = parser.parse_args(arguments)
    try:
        recognizer = Recognizer.from_checkpoint(options.checkpoint)
        files = list(image_files(options.images))
        if not files:
            raise FileNotFoundError(f"{options.images[0]}: no images in this folder ({', '.join(sorted(_SUFFIXES))})")
        for file in files:
            with Image.open(file) as image:
                ((text, confidence),) = recognizer.read(recognizer.prepare(image)[None])
            print(f"{file}\t{text}\t{confidence:.4f}")
    except UnidentifiedImageError:
        print(f"{file}: this is no image that can be read", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
