"""Starts training from the weights of an earlier best.pt, `network.init`, also one with another alphabet."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from model.config import TrialConfig, shown, shown_path
from model.data.alphabet import BLANK, Alphabet
from model.network.crnn import CRNN
from model.system.files import reason, sha256
from model.training import checkpoints

_CLASSIFIER = ("fc.weight", "fc.bias")  # one row for each class


@dataclass(frozen=True)
class InitialWeights:
    """The weights of a best.pt, and the characters that it reads."""

    path: Path
    weights: dict[str, Tensor]
    characters: str

    @classmethod
    def load(cls, config: TrialConfig, path: Path | None = None) -> Self:
        """Loads the file that `network.init` names, or a copy of it. Raises ValueError with a sentence about it."""
        path = path or Path(str(config.network.init))
        try:
            if config.network.init_sha256 not in (None, sha256(path)):
                raise ValueError("it has other contents than network.init_sha256 says")
            before, network = checkpoints.load_network(path)
        except (OSError, ValueError) as error:
            problem = reason(error).removeprefix(f"{path}: ")
            raise ValueError(
                f"network.init must be a recogniser's best.pt, got {shown_path(str(path))}: {problem}"
            ) from None
        return cls(path, network.state_dict(), before.image.characters)

    def check(self, network: CRNN) -> None:
        """Raises ValueError unless the network's layers, apart from the number of classes, are those of the file."""
        expected = network.state_dict()
        for name in [*expected, *self.weights]:
            needed, found = (tuple(table[name].shape) if name in table else None for table in (expected, self.weights))
            classes = 1 if name in _CLASSIFIER else 0  # dimensions whose size is the number of classes
            if needed is None:
                problem = f"its {name} belongs to no layer of this network"
            elif found is None:
                problem = f"{name} is missing in it"
            elif needed[classes:] != found[classes:]:
                problem = f"its {name} has the shape {found}, must be {needed}"
            else:
                continue
            raise ValueError(
                f"network.init must have the layers that network describes, got {shown_path(str(self.path))}: {problem}"
            )

    def copy_to(self, network: CRNN, characters: str) -> None:
        """Replaces the network's weights. Classifier rows of characters that the file doesn't know stay as they are."""
        self.check(network)
        ours, theirs = Alphabet(characters), Alphabet(self.characters)
        shared = [character for character in characters if character in self.characters]
        to, of = [BLANK, *ours.encode("".join(shared))], [BLANK, *theirs.encode("".join(shared))]
        state = network.state_dict()
        with torch.no_grad():
            for name, weight in self.weights.items():
                if name in _CLASSIFIER:
                    state[name][to] = weight[of].to(state[name].device)
                else:
                    state[name].copy_(weight)

    def summary(self, characters: str) -> str:
        """Says which characters are kept, which are new and which are left out."""
        kept, new = ("".join(c for c in characters if (c in self.characters) is known) for known in (True, False))
        left = "".join(c for c in self.characters if c not in characters)
        others = [f"{what} {shown(these)}" for what, these in (("drawn anew:", new), ("left out:", left)) if these]
        alphabet = "the whole alphabet" if not others else f"{len(kept)} of {len(characters)} characters"
        return "; ".join([f"all layers and {alphabet} kept", *others])
