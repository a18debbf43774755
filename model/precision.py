"""Which floating-point type a device trains in."""

import torch


def resolve(precision: str, device: torch.device) -> str:
    """`auto` → `bfloat16` where the device computes it natively, else `float32`."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


def autocast(device: torch.device, precision: str, cache: bool = True) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=cache)
