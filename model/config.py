"""One trial, described: what is drawn, how it is read, how it is trained.

Every section is frozen and refuses unknown keys; pydantic collects all errors of a config at once.
"""

import string
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CaptchaConfig(Section):
    """What one image shows. It is drawn `render_scale` times larger, then shrunk: the library's
    noise dots are 3 pixels wide and swamp small images, and `font_sizes` (pixels) fit 192×64."""

    characters: str = string.digits + string.ascii_uppercase
    length: Positive | tuple[Positive, Positive] = 4
    width: Annotated[int, Field(ge=8, le=4096)] = 192
    height: Annotated[int, Field(ge=8, le=4096)] = 64
    font_sizes: Annotated[tuple[Annotated[int, Field(ge=4, le=512)], ...], Field(min_length=1)] = (42, 50, 56)
    color: Literal["rgb", "grey"] = "rgb"
    render_scale: Annotated[int, Field(ge=1, le=8)] = 1

    @property
    def channels(self) -> int:
        return 3 if self.color == "rgb" else 1

    @property
    def lengths(self) -> tuple[int, int]:
        """Shortest and longest text."""
        return (self.length, self.length) if isinstance(self.length, int) else self.length

    @model_validator(mode="after")
    def _check(self) -> Self:
        unusable = [c for c in self.characters if not c.isprintable() or c.isspace() or c == "/"]
        if not self.characters or unusable or len(set(self.characters)) != len(self.characters):
            raise ValueError(
                f"captcha.characters: {self.characters!r} is not allowed: use 1 to 255 different, printable "
                "characters without spaces and '/'"
            )
        if len(self.characters) > 255:
            raise ValueError("captcha.characters: at most 255 characters fit, one byte each with the blank")
        low, high = self.lengths
        if low > high:
            raise ValueError(f"captcha.length: [{low}, {high}] is not allowed: the first must not exceed the second")
        return self


class DataConfig(Section):
    """`pool`: rendered once into files that all trials map, kept under `path` (default: the cache
    directory; below the output directory unless absolute). `stream`: every training image is fresh,
    an epoch is `train_images` long."""

    source: Literal["pool", "stream"] = "pool"
    path: str | None = None
    train_images: Positive = 20_000
    valid_images: Positive = 2_000
    test_images: Positive = 2_000
    seed: int = 0

    @field_validator("path")
    @classmethod
    def _does_not_climb(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("/") and {"..", "~"} & {value[:1], *value.split("/")}:
            raise ValueError(f"{value!r} is not allowed: it must lie below the output directory or be absolute")
        return value


class NetworkConfig(Section):
    """Blocks of `layers` × (convolution, batch-norm, ReLU) and a max-pool of (height, width) each.

    `layers` and `kernels` are one number for all blocks or one per block. `orthogonal` with
    `standardize` leaves CTC's all-blank plateau soonest; `torch` without it is the notebook's way.
    """

    channels: Annotated[tuple[Positive, ...], Field(min_length=1)] = (16, 32, 48, 64, 64)
    layers: Positive | tuple[Positive, ...] = 1
    kernels: Positive | tuple[Positive, ...] = 3
    pools: tuple[Positive | tuple[Positive, Positive], ...] = (2, 2, 2, (2, 1), (2, 1))
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lstm_size: Positive = 64
    lstm_layers: Positive = 1
    initialization: Literal["orthogonal", "torch"] = "orthogonal"
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
        """(height, width) of the last feature map; its width is the number of CTC time steps T."""
        for _, _, _, (pool_height, pool_width) in self.blocks:
            height, width = height // pool_height, width // pool_width
        return height, width

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("layers", "kernels", "pools"):
            value = getattr(self, key)
            if not isinstance(value, int) and len(value) != len(self.channels):
                raise ValueError(
                    f"network.{key}: {len(value)} entries are not allowed: "
                    f"network.channels has {len(self.channels)} blocks, give one entry for each"
                )
        if any(kernel % 2 == 0 for _, _, kernel, _ in self.blocks):
            raise ValueError(f"network.kernels: {self.kernels} is not allowed: kernels must be odd")
        return self


class OptimizerConfig(Section):
    """`momentum` (Nesterov) belongs to sgd alone; `gradient_clip` is the largest gradient norm, null for none."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    gradient_clip: Annotated[float, Field(gt=0)] | None = 5.0


class Schedule(Section):
    """`warmup`: the fraction of all steps over which the rate first climbs linearly."""

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0


class ConstantSchedule(Schedule):
    name: Literal["constant"] = "constant"


class StepSchedule(Schedule):
    """The rate is multiplied by `gamma` at each of `milestones` (fractions of the run)."""

    name: Literal["step"] = "step"
    milestones: tuple[Fraction, ...] = (0.5, 0.8)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1


class ExponentialSchedule(Schedule):
    name: Literal["exponential"] = "exponential"
    final: Annotated[float, Field(gt=0, le=1)] = 0.01


class LinearSchedule(Schedule):
    name: Literal["linear"] = "linear"
    final: Fraction = 0.0


class CosineSchedule(Schedule):
    name: Literal["cosine"] = "cosine"
    final: Fraction = 0.0


class OneCycleSchedule(Schedule):
    """From `initial` to 1 at `peak` (a fraction of the run), then down to `final`, both along cosines."""

    name: Literal["onecycle"] = "onecycle"
    peak: Annotated[float, Field(gt=0, lt=1)] = 0.3
    initial: Annotated[float, Field(gt=0, le=1)] = 0.04
    final: Fraction = 1e-5


class WarmupStableDecaySchedule(Schedule):
    """Constant, then linear to `final` over the last `decay` of the run."""

    name: Literal["wsd"] = "wsd"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    final: Fraction = 0.0


AnySchedule = (
    ConstantSchedule
    | StepSchedule
    | ExponentialSchedule
    | LinearSchedule
    | CosineSchedule
    | OneCycleSchedule
    | WarmupStableDecaySchedule
)
SCHEDULE_SECTIONS: dict[str, type[Schedule]] = {
    section.model_fields["name"].default: section for section in AnySchedule.__args__
}


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
    seed: int = 0


class TrialConfig(Section):
    captcha: CaptchaConfig = CaptchaConfig()
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Annotated[AnySchedule, Field(discriminator="name")] = ConstantSchedule()
    training: TrainingConfig = TrainingConfig()

    @field_validator("schedule", mode="before")
    @classmethod
    def _constant_unless_named(cls, value: Any) -> Any:
        return {"name": "constant", **value} if isinstance(value, Mapping) else value

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
                f"network.pools: {list(self.network.pools)} is not allowed: captcha.height {self.captcha.height} "
                "leaves no row of features; pool less or draw higher images"
            )
        if time_steps < needed:
            raise ValueError(
                f"network.pools: {list(self.network.pools)} is not allowed: captcha.width {self.captcha.width} gives "
                f"T = {time_steps} time steps, but captcha.length {longest} needs {needed} if all characters are equal "
                "(each, and a blank between two); pool the width less or draw wider images"
            )
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"training.batch_size: {self.training.batch_size} is not allowed: "
                f"data.train_images is only {self.data.train_images}"
            )
        return self


def override(tree: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the nested `tree` with dotted paths set: for `--set`, a sampled trial and a test alike.

    A new `schedule.name` leaves behind the parameters that only the old schedule had, and those at the old one's
    defaults: the new one has its own.
    """
    result: dict[str, Any] = _copy(tree)
    for path, value in values.items():
        *sections, key = path.split(".")
        node = result
        for section in sections:
            if not isinstance(node.get(section), dict):
                node[section] = {}
            node = node[section]
        node[key] = value
    section_type = SCHEDULE_SECTIONS.get(str(values.get("schedule.name")))
    if section_type is not None:
        before = tree.get("schedule")
        old = before.get("name", "constant") if isinstance(before, Mapping) else "constant"
        defaults = {key: field.default for key, field in SCHEDULE_SECTIONS.get(str(old), Schedule).model_fields.items()}
        result["schedule"] = {
            key: value
            for key, value in result["schedule"].items()
            if f"schedule.{key}" in values or (key in section_type.model_fields and value != defaults.get(key))
        }
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_copy(item) for item in value]
    return value
