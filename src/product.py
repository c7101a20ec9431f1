"""The matrix product of a layer in the precision asked for, with a weight gradient that costs little."""

import torch
import torch.nn.functional as F
from torch import Tensor

NO_GRADIENT = 1e-10  # of the largest in the batch; less than fp32 resolves, even from every case together


def linear(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """x W^T ([B, d_in], [d_out, d_in] -> [B, d_out]): multiplied in `dtype`, returned in fp32.

    The gradient of W is added to `weight.grad` as F.linear's would be. None is passed on to x: in Forward-Forward
    nothing below a layer wants it.
    """
    return _Linear.apply(x, weight, dtype)


class _Linear(torch.autograd.Function):
    """F.linear, except that backward spares two thirds of its work and memory traffic.

    Most cases are soon far on their side of the threshold, where p is 1 or 0 and the derivative vanishes: after two
    epochs of the Matlab recipe, nine in ten. On the CPU those are left out of the weight gradient. (On a GPU the host
    would have to wait for their number.) The product is added to `weight.grad` in place, without a temporary.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.to(dtype)
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight.to(dtype)).float()

    @staticmethod
    def backward(ctx, dz: Tensor) -> tuple[None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        if dz.device.type == "cpu":
            size = dz.abs().amax(dim=1)  # [B]
            cases = (size > NO_GRADIENT * size.max()).nonzero().squeeze(1)
            dz, x = dz[cases], x[cases]
        dz = dz.to(x.dtype)
        if weight.grad is None:
            return None, (dz.T @ x).to(weight.dtype), None
        if x.dtype == weight.dtype:
            weight.grad.addmm_(dz.T, x)
        else:
            weight.grad.add_(dz.T @ x)
        return None, None, None
