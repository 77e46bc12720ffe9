"""AdamW on one vector, and the schedule of its learning rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusecli.training.checkpoint import JobState
from fusecli.training.model import PairModel

_EPSILON = 1e-8


def learning_rate(step: int, steps: int, highest: float) -> float:
    """Linear warm-up over 5 % of the steps, then half a cosine down to 0."""
    warm = max(1, round(0.05 * steps))
    if step < warm:
        return highest * (step + 1) / warm
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class FlatAdamW:
    """AdamW (arXiv:1711.05101) on all parameters as one vector, with clipping to norm 1.

    A model of this size has some twenty small tensors, and a step on one vector costs a tenth of
    a step on twenty.

    Args:
        model: its parameters become views of the vector, matrices first.
        weight_decay: of matrices; vectors have none.
    """

    betas = (0.9, 0.99)

    def __init__(self, model: PairModel, weight_decay: float) -> None:
        parameters = sorted(model.parameters(), key=lambda p: p.dim() < 2)  # keeps their order
        self.flat = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.grad = torch.zeros_like(self.flat)
        start = 0
        for p in parameters:
            stop = start + p.numel()
            p.data = self.flat[start:stop].view_as(p)
            p.grad = self.grad[start:stop].view_as(p)
            start = stop
        self.first, self.second = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.count = 0
        matrices = sum(p.numel() for p in parameters if p.dim() >= 2)
        self._parts = [
            (slice(None, matrices), weight_decay),
            (slice(matrices, None), 0.0),
        ]
        self._fused = _has_fused_adamw(self.flat.device)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Clip, update, and set the gradient to zero."""
        self.count += 1
        norm = torch.linalg.vector_norm(self.grad)
        self.grad.mul_(torch.clamp(1 / (norm + 1e-6), max=1.0))
        for part, decay in self._parts:
            vectors = (self.flat[part], self.grad[part], self.first[part], self.second[part])
            if self._fused:
                _fused_adamw(*vectors, self.count, lr, self.betas, decay)
            else:
                self._plain_adamw(*vectors, lr, decay)
        self.grad.zero_()

    def _plain_adamw(
        self, flat: Tensor, grad: Tensor, first: Tensor, second: Tensor, lr: float, decay: float
    ) -> None:
        beta1, beta2 = self.betas
        first.lerp_(grad, 1 - beta1)
        second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = second.sqrt().div_(math.sqrt(1 - beta2**self.count)).add_(_EPSILON)
        flat.mul_(1 - lr * decay)
        flat.addcdiv_(first, denominator, value=-lr / (1 - beta1**self.count))

    def store(self, state: JobState) -> None:
        """Copy parameters and moments into a state."""
        state.parameters, state.first, state.second = (
            t.cpu().numpy().copy() for t in (self.flat, self.first, self.second)
        )
        state.steps = self.count

    @torch.no_grad()
    def restore(self, state: JobState) -> None:
        """Take parameters and moments from a state."""
        for own, array in (
            (self.flat, state.parameters),
            (self.first, state.first),
            (self.second, state.second),
        ):
            assert array is not None
            own.copy_(torch.from_numpy(array))
        self.count = state.steps


def _fused_adamw(
    flat: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    count: int,
    lr: float,
    betas: tuple[float, float],
    decay: float,
) -> None:
    """The kernel of `torch.optim.AdamW(fused=True)`: one pass over the memory instead of nine.

    It is called directly because the first step of any `torch.optim` optimizer imports torch's
    compiler, which takes two seconds.
    """
    torch._fused_adamw_(
        [flat],
        [grad],
        [first],
        [second],
        [],
        [torch.tensor(float(count), device=flat.device)],
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=decay,
        eps=_EPSILON,
        amsgrad=False,
        maximize=False,
        grad_scale=None,
        found_inf=None,
    )


def _has_fused_adamw(device: torch.device) -> bool:
    """Whether this torch has the kernel for this device; torch 2.2 has none for the CPU."""
    try:
        flat, grad, first, second = torch.ones(4, 1, device=device)
        _fused_adamw(flat, grad, first, second, 1, 0.0, (0.9, 0.99), 0.0)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return True
