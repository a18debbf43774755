"""Which floating-point type a device trains in."""

import torch

from model.system.device import native_bfloat16


def resolve(precision: str, device: torch.device) -> str:
    """`auto` → `bfloat16` where the device computes it natively, else `float32`."""
    if precision != "auto":
        return precision
    return "bfloat16" if native_bfloat16(device) else "float32"


def autocast(device: torch.device, precision: str, cache: bool = True) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=cache)
