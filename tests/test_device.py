"""Which device and which precision `auto` takes, and that fp32 is fp32."""

import pytest
import torch
from commands import command

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


def test_a_gpu_is_used_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device(name) for name in ("auto", "cuda:1")] == [torch.device("cuda"), torch.device("cuda", 1)]
    with pytest.raises(ConfigError, match=r"^device=cuda:2: this torch finds 2 CUDA devices, counted from 0; use dev"):
        resolve_device("cuda:2")


def test_the_name_of_no_device_is_told():
    for name in ("gpu", "cuda:x", "xpu", "cpu:0"):
        with pytest.raises(ConfigError, match=f"^device={name}: must be auto, cpu, cuda, cuda:1 or mps$"):
            resolve_device(name)


def test_a_container_that_may_use_fewer_cores_gets_as_many_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    before = torch.get_num_threads()
    try:
        for asked, threads, expected in (("", 3, 2), ("", 1, 1), ("3", 3, 3)):
            if asked:
                monkeypatch.setenv("OMP_NUM_THREADS", asked)
            torch.set_num_threads(threads)
            use("cpu")
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_fp32_is_not_tf32_where_the_environment_asks_for_it():
    code = """if True:
        import torch
        assert torch.backends.cuda.matmul.allow_tf32
        import src.layers.connections
        assert not torch.backends.cuda.matmul.allow_tf32
    """
    done = command(code=code, TORCH_ALLOW_TF32_CUBLAS_OVERRIDE="1")
    assert done.returncode == 0, done.stderr
