"""Saves checkpoints atomically, and loads those from untrusted sources without running code in them."""

import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import torch
from crc32c import crc32c
from pydantic import ValidationError
from torch import Tensor

from model.config import TrialConfig, shown
from model.config.format import FORMAT
from model.network.crnn import CRNN
from model.system.files import replace_file

_TRAILER = b"\ncrc32c %08x\n"  # after the zip archive, where torch ignores it; torch itself verifies no checksum
_MAX_FEATURE_MAP = 2**31  # bytes, for one image
_MAX_CONFIG_PARTS = 10_000


def save(path: Path, state: dict[str, Any]) -> None:
    """Saves a checkpoint atomically, synced to the disk, with the number of its format. Raises OSError."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    data = buffer.getbuffer()
    replace_file(path, data, _TRAILER % crc32c(data))


def load(path: Path) -> dict[str, Any]:
    """Loads a checkpoint of tensors and plain values to the CPU. Raises OSError, and ValueError if it is invalid.

    Whatever the file contains, this takes about as much memory as the file has bytes.
    """
    if path.exists() and not path.is_file():  # reading from a FIFO or a device may never end
        raise ValueError(f"{path}: not a regular file")
    with path.open("rb") as file:
        problem = "this is no checkpoint, or a damaged one"
        try:
            _check_archive(file)
            if not _checksum_fits(file):
                problem = "this checkpoint is damaged: its checksum does not fit"
                raise ValueError
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about odd kinds of tensors, which `_is_plain` refuses later
                state = torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # zipfile and torch raise errors of many types
            raise ValueError(f"{path}: {problem}") from error
    if not isinstance(state, dict) or "network" not in state:
        raise ValueError(f"{path}: this is no checkpoint of a recogniser")
    found = state.get("format", 1)
    if not isinstance(found, int) or found > FORMAT:
        raise ValueError(f"{path}: its format must be at most {FORMAT}, got {shown(found)}: a newer version wrote it")
    return _from_format_1(state) if found == 1 else state


def _from_format_1(state: dict[str, Any]) -> dict[str, Any]:
    """Renames the encoder's weights to their current names. Reading the config renames its keys."""
    weights = state["network"]
    if isinstance(weights, Mapping) and all(isinstance(name, str) for name in weights):
        weights = {re.sub(r"^lstm\.", "encoder.", name): weight for name, weight in weights.items()}
    return {**state, "network": weights}


def _check_archive(file: BinaryIO) -> None:
    """Raises ValueError for a zip archive that unpacks to more than its size. torch.save does not compress."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or sum(member.file_size for member in members) > file.seek(0, io.SEEK_END):
        raise ValueError


def _checksum_fits(file: BinaryIO) -> bool:
    """Verifies the CRC-32C in the trailer. A file without a trailer, as `torch.save` writes it, is accepted too."""
    body = max(0, file.seek(0, io.SEEK_END) - len(_TRAILER % 0))
    file.seek(body)
    trailer = file.read()
    if not trailer.startswith(b"\ncrc32c "):
        return True
    file.seek(0)
    checksum = 0
    while block := file.read(min(1 << 22, body - file.tell())):
        checksum = crc32c(block, checksum)
    return trailer == _TRAILER % checksum


def load_network(path: Path) -> tuple[TrialConfig, CRNN]:
    """Loads the config and the trained network of a best.pt. Raises OSError and ValueError.

    The network that the config describes is compared with the weights in the file before memory is allocated for it.
    """
    state = load(path)
    try:
        if "config" not in state and "optimizer" in state:
            raise ValueError("this is a checkpoint to resume training from; give the best.pt beside it")
        config = _config(state.get("config"))
        return config, _network(config, state["network"], path.stat().st_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def feature_map_bytes(config: TrialConfig) -> int:
    """Size of the largest feature map that the network computes for one image, in bytes (float32)."""
    height, width, largest = config.image.height, config.image.widest, 0
    for channels, _, _, (pool_height, pool_width) in config.network.blocks:
        largest = max(largest, 4 * channels * height * width)
        height, width = height // pool_height, width // pool_width
    return largest


def _config(tree: Any) -> TrialConfig:
    """Validates a checkpoint's config. Raises ValueError with a sentence about the first error."""
    if not isinstance(tree, Mapping):
        raise ValueError("there is no config in it")
    _check_size(tree)
    try:
        return TrialConfig.model_validate(tree)
    except ValidationError as error:
        # Without the input, which may be as long as the file, and without the link to pydantic's documentation.
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        problem = first["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should be", "must be", 1)
        raise ValueError(f"the config in it can't be used: {key}{': ' * bool(key)}{problem}") from None


def _check_size(tree: Any) -> None:
    """Raises ValueError if a config has more parts than any real one.

    A pickle may refer to the same list many times from a list that itself is referred to many times, and so on. The
    file is small, but the tree is too large to be read to its end.
    """
    parts, count = [tree], 0
    while parts:
        part = parts.pop()
        count += 1
        if count + len(parts) > _MAX_CONFIG_PARTS:
            raise ValueError("the config in it is too large")
        children = part.values() if isinstance(part, Mapping) else part if isinstance(part, list | tuple | set) else ()
        parts.extend(islice(children, _MAX_CONFIG_PARTS))


def _network(config: TrialConfig, weights: Any, file_bytes: int) -> CRNN:
    """Creates the config's network with these weights. Raises ValueError if they don't belong to it."""
    if not isinstance(weights, Mapping) or not all(map(_is_plain, weights.values())):
        raise ValueError("the network in it is no table of tensors")
    # A pickle may describe a large tensor as a few numbers that are repeated (stride 0).
    if sum(weight.numel() * weight.element_size() for weight in weights.values()) > file_bytes:
        raise ValueError("its weights are larger than the file")
    layers = sum(layers for _, layers, _, _ in config.network.blocks) + config.network.encoder.depth
    if layers > len(weights):
        raise ValueError(f"its config has {layers} layers, but there are {len(weights)} weights in it")
    if feature_map_bytes(config) > _MAX_FEATURE_MAP:
        raise ValueError(f"its network would take more than {_MAX_FEATURE_MAP >> 30} GB of memory for each image")
    try:
        with torch.device("meta"):  # shapes only, without memory
            network = CRNN(config)
    except (RuntimeError, OverflowError, TypeError):
        raise ValueError("the network of its config is larger than torch can make") from None
    expected = network.state_dict()
    for name in [*expected, *weights]:
        needed, found = (tuple(table[name].shape) if name in table else None for table in (expected, weights))
        if needed != found:
            problem = "is missing" if found is None else f"has the shape {found}" + f", must be {needed}" * bool(needed)
            raise ValueError(f"the weights in it are not those of its config: {name!s:.80} {problem}")
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise ValueError("the weights in it are not all finite numbers")
    network.to_empty(device="cpu").load_state_dict(weights)
    return network


def _is_plain(weight: Any) -> bool:
    return (
        type(weight) is Tensor
        and weight.device.type == "cpu"
        and weight.layout == torch.strided
        and not weight.is_quantized
        and not weight.is_complex()
    )
