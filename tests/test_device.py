"""Which precision `auto` takes on which processor, and that fp32 is fp32."""

import subprocess
import sys

import pytest
import torch
from commands import ONE_THREAD, REPOSITORY

from src.device import resolve_precision


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


def test_fp32_is_not_tf32_where_the_environment_asks_for_it():
    code = """if True:
        import torch
        assert torch.backends.cuda.matmul.allow_tf32
        import src.linear
        assert not torch.backends.cuda.matmul.allow_tf32
    """
    environment = ONE_THREAD | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, check=True)
