"""One trial, described: what is drawn, how it is read, how it is trained.

Every section is frozen and refuses unknown keys; pydantic collects all errors of a config at once.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# Bounds far beyond any use: what lies above them is a slip or an attack, and would fail hours or gigabytes later.
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Images = Annotated[int, Field(ge=1, le=100_000_000)]
Units = Annotated[int, Field(ge=1, le=4096)]
Layers = Annotated[int, Field(ge=1, le=16)]
Kernel = Annotated[int, Field(ge=1, le=31)]
Window = Annotated[int, Field(ge=1, le=64)]
FontSize = Annotated[int, Field(ge=4, le=512)]
TextLength = Annotated[int, Field(ge=1, le=256)]
Fraction = Annotated[float, Field(ge=0, le=1)]


_MOST_PIXELS = 4096 * 4096  # of one captcha as it is drawn


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def shown(value: Any) -> str:
    """A value as an error sentence shows it: at most 80 characters."""
    text = _written(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _written(value: Any) -> str:
    """As in YAML, but with quotes around each text."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    return repr(value)


def is_no_unicode(text: str) -> bool:
    """Whether it holds lone surrogates: what Python makes of bytes that are not UTF-8, and of YAML's "\\ud800"."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def unusable_path(path: str) -> str | None:
    """What a path must be, if no file system would take this one or what a sweep makes below it."""
    if "\0" in path or is_no_unicode(path):
        return "must be text in UTF-8 without NUL"
    encoded = path.encode()
    if len(encoded) > 3500 or any(len(name) > 255 for name in encoded.split(b"/")):
        return "must be at most 3,500 bytes long, and each name in it at most 255"
    return None


class CaptchaConfig(Section):
    """What one image shows. It is drawn `render_scale` times larger, then shrunk: the library's
    noise dots are 3 pixels wide and swamp small images, and `font_sizes` (pixels) fit 192×64."""

    characters: str = string.digits + string.ascii_uppercase
    length: TextLength | tuple[TextLength, TextLength] = 4
    width: Annotated[int, Field(ge=8, le=4096)] = 192
    height: Annotated[int, Field(ge=8, le=4096)] = 64
    font_sizes: Annotated[tuple[FontSize, ...], Field(min_length=1, max_length=32)] = (42, 50, 56)
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
        if not 1 <= len(self.characters) <= 255 or unusable or len(set(self.characters)) != len(self.characters):
            raise ValueError(  # 255: one byte for each, with the blank
                "captcha.characters must be 1 to 255 different, printable characters without spaces and '/', "
                f"got {shown(self.characters)}"
            )
        low, high = self.lengths
        if low > high:
            raise ValueError(f"captcha.length must not have its first number above its second, got [{low}, {high}]")
        if self.width * self.height * self.render_scale**2 > _MOST_PIXELS:
            raise ValueError(
                f"captcha.render_scale must give at most {_MOST_PIXELS:,} pixels, got {self.render_scale}: "
                f"captcha.width {self.width} and captcha.height {self.height} are multiplied by it"
            )
        return self


class DataConfig(Section):
    """`pool`: rendered once into files that all trials map, kept under `path` (default: the cache
    directory; below the output directory unless absolute). `stream`: every training image is fresh,
    an epoch is `train_images` long."""

    source: Literal["pool", "stream"] = "pool"
    path: str | None = None
    train_images: Images = 20_000
    valid_images: Images = 2_000
    test_images: Images = 2_000
    seed: Seed = 0

    @field_validator("path")
    @classmethod
    def _can_be_a_folder(cls, value: str | None) -> str | None:
        if value is None:
            return None
        problem = unusable_path(value)
        if not value.startswith("/") and {"..", "~"} & {value[:1], *value.split("/")}:
            problem = "must lie below the output directory or be absolute"
        if problem is not None:
            raise ValueError(f"{problem}, got {shown(value)}")
        return value


class NetworkConfig(Section):
    """Blocks of `layers` × (convolution, batch-norm, ReLU) and a max-pool of (height, width) each.

    `layers` and `kernels` are one number for all blocks or one per block. `orthogonal` with
    `standardize` leaves CTC's all-blank plateau soonest; `torch` without it is the notebook's way.
    """

    channels: Annotated[tuple[Units, ...], Field(min_length=1, max_length=32)] = (16, 32, 48, 64, 64)
    layers: Layers | tuple[Layers, ...] = 1
    kernels: Kernel | tuple[Kernel, ...] = 3
    pools: tuple[Window | tuple[Window, Window], ...] = (2, 2, 2, (2, 1), (2, 1))
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lstm_size: Positive = 64
    lstm_layers: Layers = 1
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
                    f"network.{key} must have one entry for each of the {len(self.channels)} blocks of "
                    f"network.channels, got {len(value)} entries"
                )
        if any(kernel % 2 == 0 for _, _, kernel, _ in self.blocks):
            raise ValueError(f"network.kernels must be odd, got {shown(self.kernels)}")
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
    seed: Seed = 0


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


def split_at_dots(path: str) -> list[str]:
    return path.split(".")


def override(
    tree: Mapping[str, Any], values: Mapping[str, Any], split: Callable[[str], list[str]] = split_at_dots
) -> dict[str, Any]:
    """A copy of the nested `tree` with dotted paths set: for `--set`, a sampled trial and a test alike. `split` gives
    a path's keys.

    A new `schedule.name` leaves behind the parameters that only the old schedule had, and those at the old one's
    defaults: the new one has its own.
    """
    result: dict[str, Any] = _copy(tree)
    for path, value in values.items():
        *sections, key = split(path)
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
