"""The floating-point type in which a trial trains."""

import torch

from model.system.device import native_bfloat16


def resolve(precision: str, device: torch.device) -> str:
    """Resolves `auto` to `bfloat16` if the device computes it natively, else to `float32`."""
    if precision != "auto":
        return precision
    return "bfloat16" if native_bfloat16(device) else "float32"


def autocast(device: torch.device, precision: str, cache: bool = True) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=cache)
