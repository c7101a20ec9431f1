"""Which device to train on, and in which precision to multiply there."""

import logging
import os
import platform
import re
import sys

import torch

from src.config.values import DEVICE_NAMES, DEVICE_RULE, ConfigError

log = logging.getLogger(__name__)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def resolve_device(name: str) -> torch.device:
    """The device of `name`: "cpu", "cuda", "cuda:1", "mps", or "auto" for CUDA where it can be used and else the CPU.

    Raises:
        ConfigError: the name is none of these, or the machine or this build of torch has no such device.
    """
    if name == "auto":
        return torch.device("cpu" if cuda_trouble(torch.device("cuda", 0)) else "cuda")
    if not DEVICE_NAMES.fullmatch(name):
        raise ConfigError(f"device={name}: {DEVICE_RULE}")
    device = torch.device(name)
    if device.type == "cuda" and (trouble := cuda_trouble(device)):
        raise ConfigError(f"device={name}: {trouble}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps: this torch finds no MPS device; use device=cpu")
    return device


def cuda_trouble(device: torch.device) -> str | None:
    """Why a CUDA device cannot be used by this build of torch; None if it can."""
    if not torch.cuda.is_available():
        return "this torch finds no CUDA device; use device=cpu, or install a CUDA build of torch"
    number = device.index or 0
    if number >= torch.cuda.device_count():
        return f"there are {torch.cuda.device_count()} CUDA devices, counted from 0"
    if torch.version.hip:  # ROCm names architectures otherwise: "gfx90a"
        return None
    major, minor = torch.cuda.get_device_capability(number)
    for architecture in torch.cuda.get_arch_list():  # "sm_90": machine code; "compute_90": for that and later ones
        kind, _, version = architecture.partition("_")
        built_for = divmod(int(re.sub(r"\D", "", version)), 10)
        if built_for <= (major, minor) and (kind == "compute" or built_for[0] == major):
            return None
    name = f"{torch.cuda.get_device_name(number)} (compute capability {major}.{minor})"
    return f"this build of torch has no code for the {name}; install one for an older CUDA, or use device=cpu"


def resolve_precision(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 only where the hardware multiplies it natively and faster than fp32."""
    if name != "auto":
        return name
    native = False
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        has = torch.cpu.get_capabilities().get
        # Intel's AVX-512 without AMX has bf16 products too, at half the rate of fp32 ones; "bf16" is Arm's.
        native = has("amx_bf16") or (has("avx512_bf16") and "Intel" not in has("cpu_name", ""))
        native = native or (has("bf16") and sys.platform == "linux")
    return "bf16" if native else "fp32"


def use(name: str) -> torch.device:
    """`resolve_device`, and a CUDA device is the current one from now on; one that "auto" cannot use is told of.

    torch has no more threads from now on than a container's CPU quota allows, where torch goes by the number of cores.
    """
    device = resolve_device(name)
    if "OMP_NUM_THREADS" not in os.environ:
        import joblib  # here, because that adds to the environment

        if joblib.cpu_count() < torch.get_num_threads():
            torch.set_num_threads(joblib.cpu_count())
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    elif name == "auto" and torch.cuda.is_available():
        log.warning(f"device=auto: {cuda_trouble(torch.device('cuda', 0))}; the CPU is used")
    return device


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
