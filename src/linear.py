"""A linear map in the precision asked for, with a weight gradient that costs little."""

import torch
import torch.nn.functional as F
from torch import Tensor

NO_GRADIENT = 1e-10  # of the largest in the batch: beyond what fp32 resolves, even from hundreds of cases together


def linear(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """x W^T ([B, d_in], [d_out, d_in] -> [B, d_out]): multiplied in `dtype`, returned in fp32."""
    return _Linear.apply(x, weight, dtype)


class _Linear(torch.autograd.Function):
    """F.linear, except that backward spares most of its work and memory traffic.

    Most cases are soon far on their side of the threshold, where p is 1 or 0 and the derivative vanishes: after five
    epochs of the Matlab recipe, nine in ten. On the CPU those are left out of the weight gradient. (On a GPU the host
    would have to wait for their number.) The product is added to `weight.grad` in place, without a temporary.
    """

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
        if dz.device.type == "cpu":
            largest = dz.abs().amax(dim=1)  # [B]
            cases = (largest > NO_GRADIENT * largest.max()).nonzero().squeeze(1)
            dz, x = dz[cases], x[cases]
        dz, x = dz.to(ctx.dtype), x.to(ctx.dtype)
        if weight.grad is None:
            return dx, (dz.T @ x).to(weight.dtype), None
        if ctx.dtype == weight.dtype:
            weight.grad.addmm_(dz.T, x)
        else:
            weight.grad.add_(dz.T @ x)
        return dx, None, None
