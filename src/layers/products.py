"""Matrix products in the precision of a run, and smoothed gradients of weights from the cases that count."""

import torch
import torch.nn.functional as F
from torch import Tensor

# "fp32" is fp32, even where the environment asks for TF32, as NVIDIA's containers do.
torch.set_float32_matmul_precision("highest")

NO_GRADIENT = 1e-10  # of the largest in the batch: beyond what fp32 resolves, even from hundreds of cases together
# Of few cases the product is cheap, and in fp32 it is added within it; in bf16 it is written, widened and then added.
FEW_CASES = 96


def linear(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """x W^T ([B, d_in], [d_out, d_in] -> [B, d_out]): multiplied in `dtype`, rounded to it, and returned as fp32."""
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


def smooth_outer(g: Tensor, dz: Tensor, x: Tensor, momentum: float, dtype: torch.dtype) -> None:
    """g <- momentum g + (1 - momentum) dz^T x, in one pass over g ([d_out, d_in], [B, d_out], [B, d_in]): the smoothed
    gradient of the Matlab code.

    Multiplied in `dtype`, or in fp32 where that is faster. With a dimension before those, one product for each of its
    indices.
    """
    unknown_to_inductor = g.dim() == 3 or (g.is_cuda and dtype != g.dtype)
    apart = torch.compiler.is_compiling() and unknown_to_inductor
    (_smooth_outer_op if apart else _smooth_outer)(g, dz, x, momentum, dtype)


def _smooth_outer(g: Tensor, dz: Tensor, x: Tensor, momentum: float, dtype: torch.dtype) -> None:
    compiling = torch.compiler.is_compiling()
    # A compiled graph has no branch that depends on the number of cases.
    if not compiling and dz.shape[-2] <= FEW_CASES and not g.is_cuda:
        dtype = g.dtype
    dz, x = dz.to(dtype), x.to(dtype)
    product, shares = torch.addmm if g.dim() == 2 else torch.baddbmm, {"beta": momentum, "alpha": 1 - momentum}
    if dtype != g.dtype and g.is_cuda:  # the sum is not rounded to bf16 on its way
        product(g, dz.mT, x, **shares, out_dtype=g.dtype, out=g)
    elif dtype != g.dtype or compiling:  # compiled, this is one pass with the step of the weights
        g.lerp_((dz.mT @ x).float(), 1 - momentum)
    else:
        product(g, dz.mT, x, **shares, out=g)


# What Inductor does not compile stays outside of the graph: a batched product of a number of cases that is not known
# beforehand, and one of bf16 matrices into an fp32 one (torch 2.13: "tuned_addmm() takes 3 positional arguments").
_smooth_outer_op = torch.library.custom_op("forward_forward::smooth_outer", _smooth_outer, mutates_args=("g",))
