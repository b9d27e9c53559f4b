"""Matrix products of float32 on a CPU by oneDNN, where PyTorch itself takes MKL.

On processors that are not Intel's MKL stops at AVX2: there oneDNN is 2.2 times as fast with AVX-512, a tenth faster
without (docs/performance.md). PyTorch has it as an operator of its compiler, for inference; here it gets derivatives,
of any order.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST = 1 << 22  # multiplications of a sample; below, an operator of our own may cost more than it saves


@functools.cache
def _available() -> bool:
    """Whether this PyTorch has the operator, and this processor vectors for which oneDNN writes kernels."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is the faster way for `x [N, ..., I]` and `weight [O, I]`.

    It depends on sizes of one sample alone, so that a sample's numbers do not depend on its batch.
    """
    return (
        not torch.compiler.is_compiling()  # first: the compiler cannot look into the questions that follow
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.shape[1:].numel() * len(weight) >= _LEAST
        and len(x) > 0
        and _available()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear(x, weight, bias)`: `[N, ..., I], [O, I], [O]` -> `[N, ..., O]`."""
    if not pays(x, weight):
        return F.linear(x, weight, bias)
    return _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias).unflatten(0, x.shape[:-1])


def fast_in_batches() -> bool:
    """Whether batches of products are better taken one by one through oneDNN than together through MKL."""
    return _available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a [R, I] @ b [I, O]` in float32 on a CPU, for where nobody asks for derivatives."""
    return _onednn(a, b.t()) if _available() else a @ b


def batched(a: Tensor, b: Tensor) -> Tensor:
    """`a [P, R, I] @ b [P, I, O]` as `matmul` for each P."""
    if not fast_in_batches():
        return torch.bmm(a, b)
    return torch.stack([matmul(x, y) for x, y in zip(a.unbind(), b.unbind(), strict=True)])


def add_batched(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add `batched(a, b)` to `total [P, R, O]`."""
    if not fast_in_batches():
        total.baddbmm_(a, b)
        return
    for t, x, y in zip(total.unbind(), a.unbind(), b.unbind(), strict=True):
        t.add_(matmul(x, y))


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """`x [R, I]` times `weight [O, I]` turned, plus bias; both may be turned views of other tensors."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # noqa: ANN001
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _Product.apply(grad, weight.t(), None) if of_x else None,
            _Product.apply(grad.t(), x.t(), None) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )
