"""The config of one trial: its sections, and what must hold between them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from model.config.data import CaptchaConfig, DataConfig
from model.config.network import NetworkConfig
from model.config.renamed import renamed
from model.config.schedules import AnySchedule, ConstantSchedule
from model.config.section import Positive, Section, Seed, shown
from model.config.tagged import Tagged


class OptimizerConfig(Section):
    """`momentum` (Nesterov) belongs to sgd alone; `gradient_clip` is the largest gradient norm, null for none."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    gradient_clip: Annotated[float, Field(gt=0)] | None = 5.0


class AugmentationConfig(Section):
    """Each time a training image is shown it moves by up to `shift` pixels either way, and each of its channels grows
    brighter or darker by up to the fraction `color`."""

    shift: Annotated[int, Field(ge=0, le=64)] = 0
    color: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TrainingConfig(Section):
    """`precision: auto` is bfloat16 autocast where the device computes it natively, else float32.

    `cuda_graph` says what an NVIDIA GPU replays as a recorded CUDA graph: `network` its forward and backward pass,
    `step` the whole training step, `false` nothing; `auto` and `true` are `network`. A CPU ignores it.
    `compile` compiles the network with torch.compile, `auto` where a trial on a GPU is long enough to repay that.
    """

    epochs: Positive = 10
    batch_size: Positive = 32
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    cuda_graph: Literal["auto", "network", "step"] | bool = "auto"
    compile: Literal["auto"] | bool = False
    augmentation: AugmentationConfig = AugmentationConfig()
    seed: Seed = 0


class TrialConfig(Section):
    """Everything that determines one trial."""

    captcha: CaptchaConfig = CaptchaConfig()
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Annotated[AnySchedule, Tagged("constant")] = ConstantSchedule()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, value: Any) -> Any:
        return renamed(value) if isinstance(value, Mapping) else value

    @property
    def time_steps(self) -> int:
        """T, the number of CTC time steps that the image's width gives."""
        return self.network.feature_size(self.captcha.height, self.captcha.width)[1]

    @property
    def steps_per_epoch(self) -> int:
        return self.data.train_images // self.training.batch_size

    @model_validator(mode="after")
    def _check(self) -> Self:
        height, time_steps = self.network.feature_size(self.captcha.height, self.captcha.width)
        longest = self.captcha.lengths[1]
        needed = 2 * longest - 1
        if height < 1:
            raise ValueError(
                f"network.pools must leave a row of features, got {shown(self.network.pools)}: captcha.height "
                f"{self.captcha.height} leaves none; pool less or draw higher images"
            )
        if time_steps < needed:
            raise ValueError(
                f"network.pools must give at least {needed} time steps, got {shown(self.network.pools)}: captcha.width "
                f"{self.captcha.width} gives T = {time_steps}, but captcha.length {longest} needs {needed} if all "
                "characters are equal (each, and a blank between two); pool the width less or draw wider images"
            )
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"training.batch_size must be at most data.train_images ({self.data.train_images}), "
                f"got {self.training.batch_size}"
            )
        return self
