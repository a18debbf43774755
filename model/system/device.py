"""The device that a trial trains on: the CPU or the machine's accelerator."""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import torch

CPU = torch.device("cpu")
# torch's `cuda` is NVIDIA's and AMD's GPUs, `xpu` Intel's. Apple's `mps` has no CTC loss.
_KINDS = ("cuda", "xpu")


def accelerator() -> torch.device | None:
    """The accelerator, as a device without an index, or None if there is none that can train a CRNN."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device(found.type) if found is not None and found.type in _KINDS else None


def pick(gpus: float) -> torch.device:
    """The device of a trial with `gpus` GPUs. Raises RuntimeError if that is more than 0 and torch finds none."""
    if not gpus:
        return CPU
    found = accelerator()
    if found is None:
        raise RuntimeError("resources.gpus: torch finds no GPU in the trial's process")
    return found


def count() -> int:
    return 0 if accelerator() is None else torch.accelerator.device_count()


def name() -> str:
    """The first accelerator's name, or "" if there is none."""
    found = accelerator()
    return "" if found is None else str(torch.get_device_module(found).get_device_name(0))


def free_bytes(device: torch.device) -> int:
    """Memory of an accelerator, in bytes, that no process has allocated."""
    free: int = torch.get_device_module(device).mem_get_info(device)[0]
    return free


def limit_memory(device: torch.device, fraction: float) -> None:
    """Limits this process to a fraction of the accelerator's memory. Beyond it, torch raises OutOfMemoryError."""
    torch.get_device_module(device).set_per_process_memory_fraction(fraction)


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 natively instead of emulating it."""
    if device.type == "cuda" and torch.version.hip is None:
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type in _KINDS:
        return bool(torch.get_device_module(device).is_bf16_supported())
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def warm_up(device: torch.device) -> None:
    """Creates the device's context and loads its libraries (convolution, LSTM, matrix product), once per process.

    This takes seconds. The first backward pass here is a multiplication, because a backward thread that begins with a
    matrix product has no current CUDA context yet, and cuBLAS warns.
    """
    one = torch.ones(1, device=device, requires_grad=True)
    (one * one).sum().backward()
    image = torch.zeros(2, 1, 8, 8, device=device)
    features = torch.nn.functional.conv2d(image, torch.zeros(8, 1, 3, 3, device=device, requires_grad=True), padding=1)
    lstm = torch.nn.LSTM(8, 8, bidirectional=True).to(device)
    lstm(features.mean(2).permute(2, 0, 1))[0].sum().backward()


def start_warm_up(device: torch.device) -> Future[None]:
    """Runs `warm_up` in a thread while the process reads and opens files. The future re-raises its exception."""
    background = ThreadPoolExecutor(1, "warm-up")
    future = background.submit(warm_up, device)
    background.shutdown(wait=False)
    return future
