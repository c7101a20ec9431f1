"""A linear map in the precision asked for, with a weight gradient that costs little."""

import torch
import torch.nn.functional as F
from torch import Tensor

# "fp32" is fp32, even where the environment asks for TF32, as NVIDIA's containers do.
torch.set_float32_matmul_precision("highest")

NO_GRADIENT = 1e-10  # of the largest in the batch: beyond what fp32 resolves, even from hundreds of cases together

# Of few cases the product is cheap, and in fp32 it is added in place; in bf16 it is written, widened and then added.
FEW_CASES = 96


def linear(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """x W^T ([B, d_in], [d_out, d_in] -> [B, d_out]): multiplied in `dtype`, returned in fp32."""
    return _Linear.apply(x, weight, dtype)


def significant(sizes: Tensor) -> Tensor:
    """Indices of the cases that count in a weight gradient, given the sizes of their derivatives ([B]).

    Most cases are soon far on their side of the threshold, where p is 1 or 0 and the derivative vanishes: after five
    epochs of the Matlab recipe, nine in ten. Leaving them out pays on the CPU; on a GPU, where the host would have to
    wait for their number, all are kept. (Take their rows by `index_select`, which is several times as fast as `[]`.)
    """
    if sizes.device.type != "cpu":
        return torch.arange(len(sizes), device=sizes.device)
    return (sizes > NO_GRADIENT * sizes.max()).nonzero().squeeze(1)


def add_weight_gradient(grad: Tensor, dz: Tensor, x: Tensor, dtype: torch.dtype) -> None:
    """grad += dz^T x ([d_out, d_in], [B, d_out], [B, d_in]), multiplied in `dtype`, or in fp32 where that is faster.

    With a dimension before those, one product for each of its indices.
    """
    if not torch.compiler.is_compiling() and dz.shape[-2] <= FEW_CASES:  # a compiled graph has no such branch
        dtype = grad.dtype
    dz, x = dz.to(dtype), x.to(dtype)
    if dtype != grad.dtype:
        grad.add_(dz.mT @ x)
    elif grad.dim() == 2:
        grad.addmm_(dz.mT, x)
    else:
        grad.baddbmm_(dz.mT, x)


class _Linear(torch.autograd.Function):
    """F.linear, except that backward spares most of its work and memory traffic."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dtype = dtype
        return F.linear(x.to(dtype), weight.to(dtype)).float()

    @staticmethod
    def backward(ctx, dz: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        # Never needed in Forward-Forward training, where x is detached.
        dx = (dz.to(ctx.dtype) @ weight.to(ctx.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        cases = significant(dz.abs().amax(dim=1))
        dz, x = dz.index_select(0, cases), x.index_select(0, cases)
        if weight.grad is None:
            return dx, (dz.to(ctx.dtype).T @ x.to(ctx.dtype)).to(weight.dtype), None
        add_weight_gradient(weight.grad, dz, x, ctx.dtype)
        return dx, None, None
