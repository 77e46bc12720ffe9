"""The layers that methods are made of: shapes of their parameters, and how those start.

The bounds are those of `nn.Linear` and `nn.MultiheadAttention` (torch/nn/init.py,
`kaiming_uniform_` with a = sqrt(5) and `xavier_uniform_`).
"""

from __future__ import annotations

import math
from dataclasses import field

from fusecli.records import record


@record
class Layer:
    """The parameters of one layer under their `state_dict` names.

    Attributes:
        shapes: of all its parameters, in the order of `state_dict`.
        draws: the parameters that torch draws when it creates the layer, in the order in which
            it draws them, each with the bound b of the uniform distribution from -b to b.
        constants: what the others start with. A parameter may also be in `draws`: torch draws
            it and then overwrites it, so that its numbers of the random stream are used up.
    """

    shapes: dict[str, tuple[int, ...]]
    draws: tuple[tuple[str, float], ...] = ()
    constants: dict[str, float] = field(default_factory=dict)


def linear(name: str, fan_in: int, fan_out: int) -> Layer:
    """`nn.Linear`: weight `[fan_out, fan_in]`, bias `[fan_out]`."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    bound = math.sqrt(3.0) * (math.sqrt(2.0 / (1 + 5)) / math.sqrt(fan_in))
    draws = (weight, bound), (bias, 1 / math.sqrt(fan_in))
    return Layer({weight: (fan_out, fan_in), bias: (fan_out,)}, draws)


def multihead_attention(name: str, D: int, context_dim: int = 0) -> Layer:
    """`nn.MultiheadAttention` of width D; its biases start at zero.

    Args:
        name: of the layer.
        D: its width.
        context_dim: `kdim` and `vdim`, where they are not D.
    """
    out = linear(f"{name}.out_proj", D, D)
    weight, bias = f"{name}.in_proj_weight", f"{name}.in_proj_bias"
    if context_dim:
        widths = {"q": D, "k": context_dim, "v": context_dim}
        inputs = {f"{name}.{part}_proj_weight": (D, width) for part, width in widths.items()}
        bounds = [(key, math.sqrt(6.0 / (D + width))) for key, (_, width) in inputs.items()]
        constants = {bias: 0.0, f"{name}.out_proj.bias": 0.0}
        shapes = {**inputs, bias: (3 * D,), **out.shapes}
        return Layer(shapes, (*out.draws, *bounds), constants)
    draws = (*out.draws, (weight, math.sqrt(3.0) * math.sqrt(2.0 / (D + 3 * D))))
    shapes = {weight: (3 * D, D), bias: (3 * D,), **out.shapes}
    return Layer(shapes, draws, {bias: 0.0, f"{name}.out_proj.bias": 0.0})


def layer_norm(name: str, D: int) -> Layer:
    """`nn.LayerNorm` of width D."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    return Layer({weight: (D,), bias: (D,)}, (), {weight: 1.0, bias: 0.0})


def zero(name: str) -> Layer:
    """One number that starts at 0."""
    return Layer({name: (1,)}, (), {name: 0.0})
