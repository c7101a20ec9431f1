"""Which device to train on, and in which precision to multiply there."""

import platform
import sys

import torch

from src.config.values import ConfigError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def resolve_device(name: str) -> torch.device:
    """The device of `name`: "cpu", "cuda", "mps", or "auto" for CUDA where there is one and the CPU otherwise.

    Raises:
        ConfigError: the machine or this build of torch has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda: this torch finds no CUDA device; use device=cpu, or install a CUDA build of torch"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps: this torch finds no MPS device; use device=cpu")
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 only where the hardware multiplies it natively and faster than fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = capabilities.get("amx_bf16")
        # Intel's AVX-512 without AMX has bf16 products too, at half the rate of fp32 ones.
        native = native or (capabilities.get("avx512_bf16") and "Intel" not in capabilities.get("cpu_name", ""))
        native = native or (capabilities.get("bf16") and sys.platform == "linux")  # Arm
    else:
        native = False
    return "bf16" if native else "fp32"


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all it was given, so that the clock can be read."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def describe(device: torch.device) -> str:
    """The hardware's name, for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    name = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"
