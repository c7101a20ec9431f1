"""Matrix products in the precision of a run, and gradients of weights from the cases that count."""

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
    return F.linear(x.to(dtype), weight.to(dtype)).float()


def significant(sizes: Tensor) -> Tensor | None:
    """Indices of the cases that count in a weight gradient, given the sizes of their derivatives ([B]); None for all.

    Most cases are soon far on their side of the threshold, where p is 1 or 0 and the derivative vanishes: after five
    epochs of the Matlab recipe, nine in ten. Leaving them out pays on the CPU; on a GPU the host would have to wait for
    their number.
    """
    if sizes.device.type != "cpu":
        return None
    return (sizes > NO_GRADIENT * sizes.max()).nonzero().squeeze(1)


def rows(x: Tensor, cases: Tensor | None) -> Tensor:
    """The rows of x ([B, ...]) with these indices, or all of them. (index_select is several times as fast as [].)"""
    return x if cases is None else x.index_select(0, cases)


def add_outer(grad: Tensor, dz: Tensor, x: Tensor, dtype: torch.dtype) -> None:
    """grad += dz^T x ([d_out, d_in], [B, d_out], [B, d_in]), multiplied in `dtype`, or in fp32 where that is faster.

    With a dimension before those, one product for each of its indices.
    """
    batched = torch.compiler.is_compiling() and grad.dim() == 3
    (_add_outer_op if batched else _add_outer)(grad, dz, x, dtype)


def _add_outer(grad: Tensor, dz: Tensor, x: Tensor, dtype: torch.dtype) -> None:
    # A compiled graph has no branch that depends on the number of cases.
    if not torch.compiler.is_compiling() and dz.shape[-2] <= FEW_CASES and not grad.is_cuda:
        dtype = grad.dtype
    dz, x = dz.to(dtype), x.to(dtype)
    add_product = torch.addmm if grad.dim() == 2 else torch.baddbmm
    if dtype == grad.dtype:
        add_product(grad, dz.mT, x, out=grad)
    elif grad.is_cuda:  # the sum is not rounded to bf16 on its way
        add_product(grad, dz.mT, x, out_dtype=grad.dtype, out=grad)
    else:
        grad.add_(dz.mT @ x)


# Inductor makes no batched product of a number of cases that is not known beforehand: it stays outside of the graph.
_add_outer_op = torch.library.custom_op("forward_forward::add_outer", _add_outer, mutates_args=("grad",))
