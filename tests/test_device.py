"""Which device and which precision `auto` takes, and that fp32 is fp32."""

import subprocess
import sys

import pytest
import torch
from commands import ONE_THREAD, REPOSITORY

from src.config.values import ConfigError
from src.training.device import resolve_device, resolve_precision, use


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "fp32"),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, "bf16"),
        ({"cpu_name": "AMD EPYC", "avx2": True}, "fp32"),
    ],
)
def test_auto_takes_bf16_only_where_it_is_faster(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", torch.device("cpu")) == precision


@pytest.mark.parametrize(
    ("built_for", "usable"),
    [
        ("sm_75 sm_80 sm_90a", [True, False]),
        ("sm_75 sm_86 sm_100", [False, False]),
        ("sm_80 compute_50", [True, True]),  # compiled when it is started
        ("sm_60 compute_90", [True, True]),
    ],
)
def test_a_gpu_is_used_if_this_torch_has_code_for_it(monkeypatch, caplog, built_for, usable):
    """Of two, with compute capabilities 9.0 and 6.1."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", [(9, 0), (6, 1)].__getitem__)
    monkeypatch.setattr(torch.cuda, "get_device_name", ["new GPU", "old GPU"].__getitem__)
    monkeypatch.setattr(torch.cuda, "get_arch_list", built_for.split)
    for number, can_be_used in enumerate(usable):
        if can_be_used:
            assert resolve_device(f"cuda:{number}") == torch.device("cuda", number)
        else:
            with pytest.raises(ConfigError, match=rf"^device=cuda:{number}: .* no code for the .* GPU \(compute capab"):
                resolve_device(f"cuda:{number}")
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    assert resolve_device("auto").type == ("cuda" if usable[0] else "cpu") and not caplog.text
    assert use("auto").type == ("cuda" if usable[0] else "cpu")
    assert ("the CPU is used" in caplog.text) != usable[0]
    with pytest.raises(ConfigError, match="device=cuda:2: there are 2 CUDA devices, counted from 0"):
        resolve_device("cuda:2")
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "get_arch_list", ["gfx90a"].copy)
    assert resolve_device("cuda") == torch.device("cuda")


def test_the_name_of_no_device_is_told():
    for name in ("gpu", "cuda:x", "xpu", "cpu:0"):
        with pytest.raises(ConfigError, match=f"^device={name}: must be auto, cpu, cuda, cuda:1 or mps$"):
            resolve_device(name)


def test_a_container_that_may_use_fewer_cores_gets_as_many_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    before = torch.get_num_threads()
    try:
        for threads, expected in ((3, 2), (1, 1)):
            torch.set_num_threads(threads)
            use("cpu")
            assert torch.get_num_threads() == expected
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        torch.set_num_threads(3)
        use("cpu")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_fp32_is_not_tf32_where_the_environment_asks_for_it():
    code = """if True:
        import torch
        assert torch.backends.cuda.matmul.allow_tf32
        import src.layers.connections
        assert not torch.backends.cuda.matmul.allow_tf32
    """
    environment = ONE_THREAD | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, check=True)
