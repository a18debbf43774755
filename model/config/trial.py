"""The config of one trial: its sections, and the rules that span several of them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from model.config.data import CaptchaConfig, DataConfig
from model.config.images import ImagesConfig, ImageSection
from model.config.network import NetworkConfig
from model.config.renamed import renamed
from model.config.schedules import AnySchedule, ConstantSchedule
from model.config.section import Positive, Section, Seed, shown
from model.config.tagged import Tagged


class OptimizerConfig(Section):
    """The optimiser. `momentum` (Nesterov) is for sgd only; `gradient_clip` is the maximum gradient norm or null."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    gradient_clip: Annotated[float, Field(gt=0)] | None = 5.0


class AugmentationConfig(Section):
    """Random changes to each training image, drawn anew for each image each time it is used. 0 turns a change off.

    Each value is the strongest change that is drawn; weaker ones are as likely. `shift` is in pixels in each direction.
    `rotation` and `shear` (to the left or right) are in degrees. `perspective` moves each corner inwards by up to this
    share of half the width and height. `blur` is the standard deviation of a Gaussian in pixels. `noise` is that of
    Gaussian noise, as a share of the range from black to white. `erasing` is the share of the image that a rectangle
    covers with the image's mean colour. `brightness` multiplies all pixels by 1 ± this fraction, `color` those of each
    channel by a factor of its own, and `contrast` their distance from the image's mean grey.
    """

    shift: Annotated[int, Field(ge=0, le=64)] = 0
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    shear: Annotated[float, Field(ge=0, le=60)] = 0.0
    perspective: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # beyond 2/3, corners may form no convex quadrilateral
    blur: Annotated[float, Field(ge=0, le=16)] = 0.0
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    erasing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    color: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TrainingConfig(Section):
    """Length, batch size, numeric precision and acceleration of training.

    `precision: auto` is bfloat16 autocast if the device computes it natively, else float32.
    `cuda_graph` selects what an NVIDIA GPU records as a CUDA graph and replays: `network` the network's forward and
    backward pass, `step` the whole training step, `false` nothing; `auto` and `true` mean `network`. CPUs ignore it.
    `compile` compiles the network with torch.compile; `auto` does so if a trial on a GPU is long enough to repay it.
    """

    epochs: Positive = 10
    batch_size: Positive = 32
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    cuda_graph: Literal["auto", "network", "step"] | bool = "auto"
    compile: Literal["auto"] | bool = False
    augmentation: AugmentationConfig = AugmentationConfig()
    seed: Seed = 0


class TrialConfig(Section):
    """Everything that determines one trial. Its images are either drawn (`captcha`) or your own (`images`)."""

    captcha: CaptchaConfig | None = CaptchaConfig()
    images: ImagesConfig | None = None
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Annotated[AnySchedule, Tagged("constant")] = ConstantSchedule()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, value: Any) -> Any:
        return renamed(value) if isinstance(value, Mapping) else value

    @model_validator(mode="before")
    @classmethod
    def _choose_images(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or value.get("images") is None:
            return value
        if value.get("captcha") is not None:
            raise ValueError("images and captcha must not both be there: own images, or drawn ones")
        return {**value, "captcha": None}

    @property
    def image(self) -> ImageSection:
        """What an image shows: the section `captcha` or `images`."""
        section = self.captcha if self.images is None else self.images
        assert section is not None
        return section

    @property
    def drawn(self) -> CaptchaConfig:
        """The section `captcha`. Raises ValueError for own images, which can't be drawn."""
        if self.captcha is None:
            raise ValueError("captcha must be a section, got null: own images can't be drawn")
        return self.captcha

    @property
    def time_steps(self) -> int:
        """T, the number of CTC time steps for the widest images."""
        return self.network.feature_size(self.image.height, self.image.widest)[1]

    @property
    def steps_per_epoch(self) -> int:
        return self.data.train_images // self.training.batch_size

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.captcha is None and self.images is None:
            raise ValueError("captcha must be a section, or images must be one, got null for both")
        if self.images is not None and self.data.source != "pool":
            raise ValueError("data.source must be pool for own images, got stream: only drawn images can be endless")
        if not self.image.is_known:
            return self  # validated again when the images have been looked at
        key, longest = self.image.key, self.image.longest
        height, time_steps = self.network.feature_size(self.image.height, self.image.widest)
        needed = 2 * longest - 1 if self.images is None else 1
        if height < 1:
            raise ValueError(
                f"network.pools must leave a row of features, got {shown(self.network.pools)}: {key}.height "
                f"{self.image.height} leaves none; pool less or take higher images"
            )
        if time_steps < needed:
            raise ValueError(
                f"network.pools must give at least {needed} time steps, got {shown(self.network.pools)}: {key}.width "
                f"{self.image.widest} gives T = {time_steps}, but {key}.length {longest} needs {needed} if all "
                "characters are equal (each, and a blank between two); pool the width less or take wider images"
            )
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"training.batch_size must be at most data.train_images ({self.data.train_images}), "
                f"got {self.training.batch_size}"
            )
        return self
