"""The config section `network`: the recogniser's layers."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from model.config.encoders import AnyEncoder, Layers, LstmEncoder
from model.config.section import FileName, Section, Sha256, shown
from model.config.tagged import Tagged

Units = Annotated[int, Field(ge=1, le=4096)]
Kernel = Annotated[int, Field(ge=1, le=31)]
Window = Annotated[int, Field(ge=1, le=64)]


def _usual_pools(data: dict[str, Any]) -> tuple[int | tuple[int, int], ...]:
    """The default of `pools` for the blocks of the other keys."""
    blocks = len(data.get("channels", ()))
    pools: tuple[int | tuple[int, int], ...] = (2, 2, *((2, 1) for _ in range(2, blocks)))
    return pools[:blocks]


class NetworkConfig(Section):
    """Convolutional blocks, then an encoder. A block is `layers` × (convolution, batch-norm, ReLU) and a max-pool.

    `layers` and `kernels` are one number for all blocks or one per block; `pools` are one number or (height, width) per
    block. By default two blocks halve the width, so that a time step is four pixels wide, and all halve the height.

    Early in training, CTC networks output only blanks: `initialization: orthogonal` with `standardize` leaves
    this plateau soonest. `torch` without `standardize` is what the original notebook does (configs/captcha_break.yaml).
    `init` is a best.pt whose weights training starts from, see `model.training.initial_weights`; `freeze` has name
    patterns of layers that are not trained, see `model.training.freezing`.
    """

    channels: Annotated[tuple[Units, ...], Field(min_length=1, max_length=32)] = (16, 32, 48, 64, 64)
    layers: Layers | tuple[Layers, ...] = 1
    kernels: Kernel | tuple[Kernel, ...] = 3
    pools: tuple[Window | tuple[Window, Window], ...] = Field(default_factory=_usual_pools)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    encoder: Annotated[AnyEncoder, Tagged("lstm")] = LstmEncoder()
    initialization: Literal["orthogonal", "torch"] = "orthogonal"
    init: FileName | None = None
    init_sha256: Sha256 | None = None
    freeze: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    standardize: bool = True

    @property
    def blocks(self) -> list[tuple[int, int, int, tuple[int, int]]]:
        """Per block: channels, layers, kernel, (pool height, pool width)."""
        layers, kernels = (
            (value,) * len(self.channels) if isinstance(value, int) else value for value in (self.layers, self.kernels)
        )
        pools = [(pool, pool) if isinstance(pool, int) else pool for pool in self.pools]
        return list(zip(self.channels, layers, kernels, pools, strict=True))

    def feature_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the last feature map for images of this size. Its width is T, the CTC time steps."""
        for _, _, _, (pool_height, pool_width) in self.blocks:
            height, width = height // pool_height, width // pool_width
        return height, width

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("layers", "kernels", "pools"):
            value = getattr(self, key)
            if not isinstance(value, int) and len(value) != len(self.channels):
                raise ValueError(
                    f"network.{key} must have one entry for each of the {len(self.channels)} blocks of "
                    f"network.channels, got {len(value)} entries"
                )
        if any(kernel % 2 == 0 for _, _, kernel, _ in self.blocks):
            raise ValueError(f"network.kernels must be odd, got {shown(self.kernels)}")
        return self
