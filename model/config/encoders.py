"""`network.encoder`: the sequence model over the feature map's columns, between convolutions and classifier.

To add an encoder, add a class here and list it in `AnyEncoder`. An encoder maps (T, N, features) to (T, N, outputs).
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from model.config.section import Positive, Section

if TYPE_CHECKING:
    from torch import nn

Layers = Annotated[int, Field(ge=1, le=16)]


class Encoder(Section):
    @property
    def depth(self) -> int:
        """The number of layers, 0 for an encoder without a `layers` parameter."""
        layers: int = getattr(self, "layers", 0)
        return layers

    @abstractmethod
    def outputs(self, features: int) -> int:
        """The number of values that the encoder outputs for each column of `features` values."""

    @abstractmethod
    def build(self, features: int) -> "nn.Module":
        """Creates the module. It may return a tuple whose first item is the output, as torch's recurrent modules do.

        Implementations import torch themselves, because some processes read a config but need no torch.
        """


class RecurrentEncoder(Encoder):
    """A bidirectional recurrent network with `size` units in each direction."""

    size: Positive = 64
    layers: Layers = 1

    def outputs(self, features: int) -> int:
        return 2 * self.size


class LstmEncoder(RecurrentEncoder):
    name: Literal["lstm"] = "lstm"

    def build(self, features: int) -> "nn.Module":
        from torch import nn

        return nn.LSTM(features, self.size, self.layers, bidirectional=True)


class GruEncoder(RecurrentEncoder):
    """A GRU has three quarters of an LSTM's weights."""

    name: Literal["gru"] = "gru"

    def build(self, features: int) -> "nn.Module":
        from torch import nn

        return nn.GRU(features, self.size, self.layers, bidirectional=True)


class TransformerEncoder(Encoder):
    """A transformer encoder (Vaswani et al. 2017), pre-norm (Xiong et al. 2020), with sinusoidal positional encodings.

    `size` is the model's width, a multiple of twice `heads`; the feed-forward layers are four times as wide.
    """

    name: Literal["transformer"] = "transformer"
    size: Annotated[int, Field(ge=2, le=4096)] = 64
    layers: Layers = 2
    heads: Annotated[int, Field(ge=1, le=64)] = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.size % (2 * self.heads):
            raise ValueError(
                f"network.encoder.size must be a multiple of twice network.encoder.heads, {2 * self.heads}, "
                f"got {self.size}"
            )
        return self

    def outputs(self, features: int) -> int:
        return self.size

    def build(self, features: int) -> "nn.Module":
        from torch import nn

        from model.network.positions import SinusoidalPositions

        layer = nn.TransformerEncoderLayer(self.size, self.heads, 4 * self.size, self.dropout, norm_first=True)
        stack = nn.TransformerEncoder(layer, self.layers, nn.LayerNorm(self.size), enable_nested_tensor=False)
        return nn.Sequential(nn.Linear(features, self.size), SinusoidalPositions(), stack)


class NoEncoder(Encoder):
    """No encoder: each column is classified by itself, from the receptive field of the convolutions."""

    name: Literal["none"] = "none"

    def outputs(self, features: int) -> int:
        return features

    def build(self, features: int) -> "nn.Module":
        from torch import nn

        return nn.Identity()


AnyEncoder = LstmEncoder | GruEncoder | TransformerEncoder | NoEncoder
