"""Which device to train on, and in which precision to multiply there."""

import ctypes
import os
import platform
import sys

import torch

from src.config.values import DEVICE_NAMES, DEVICE_RULE, ConfigError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def resolve_device(name: str) -> torch.device:
    """The device of `name`: "cpu", "cuda", "cuda:1", "mps", or "auto" for CUDA where there is one and else the CPU.

    Raises ConfigError if the name is none of these, or the machine or this build of torch has no such device.
    """
    if not DEVICE_NAMES.fullmatch(name):
        raise ConfigError(f"device={name}: {DEVICE_RULE}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device, count = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        advice = "use device=cpu, or install a CUDA build of torch"
        raise ConfigError(f"device={name}: this torch finds {count} CUDA devices, counted from 0; {advice}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps: this torch finds no MPS device; use device=cpu")
    return device


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
    """`resolve_device`, and a CUDA device is the current one from now on.

    torch has no more threads from now on than a container's CPU quota allows, where torch goes by the number of cores.
    """
    if platform.libc_ver()[0] == "glibc":  # keeps what is freed: page faults cost a quarter of a step of section 4
        ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX: nothing is mapped apart, to be unmapped when it is freed
        ctypes.CDLL(None).mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    device = resolve_device(name)
    if "OMP_NUM_THREADS" not in os.environ:
        import joblib  # here, because that adds to the environment

        if joblib.cpu_count() < torch.get_num_threads():
            torch.set_num_threads(joblib.cpu_count())
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    return device


def describe(device: torch.device) -> str:
    """The hardware's name, for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    name = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"
