"""State dicts of an attention whose query, key and value are linear layers of their own.

BERT, ViT, CLIP, BLIP and diffusers store it so. fusecli reads the layout of
`nn.MultiheadAttention`; this says how one is made of the other.
"""

from __future__ import annotations

from fusecli.features.file import FeatureFile
from fusecli.features.layers import PLAIN_NAME

# Query, key, value, and the layers behind them, by the names that they have. (Of T5 and Llama
# there is nothing: their scores are not those of nn.MultiheadAttention.)
_NAMES = (
    ("query", "key", "value", ("output.dense", "out", "out_proj", "dense")),
    ("q_proj", "k_proj", "v_proj", ("out_proj",)),
    ("to_q", "to_k", "to_v", ("to_out.0", "to_out")),
)


def remedy_for_split(file: FeatureFile) -> str:
    """How to make an `nn.MultiheadAttention` of such a file, as the end of a sentence.

    Args:
        file: open; no fusion's parameters are in it.

    Returns:
        "" if the file holds no such attention, or one that is no `nn.MultiheadAttention`.
    """
    keys = file.tensors
    for query, key, value, outs in _NAMES:
        for found in sorted(keys):
            if not found.endswith(f"{query}.weight"):
                continue
            start = found.removesuffix(f"{query}.weight")
            if start and not start.endswith("."):
                continue
            inputs = [start + name for name in (query, key, value)]
            weights = [f"{name}.weight" for name in inputs]
            if not all(weight in keys for weight in weights):
                continue
            shape = file.shape_of(weights[0])
            if len(shape) != 2 or any(file.shape_of(w) != (shape[0],) * 2 for w in weights):
                continue
            D = shape[0]
            return _remedy(file, inputs, _output(file, start, outs, D), D)
    return ""


def _output(file: FeatureFile, start: str, outs: tuple[str, ...], D: int) -> str | None:
    """The layer behind the attention; None if there is none."""
    parent = start.removesuffix(".").rpartition(".")[0]
    for nest in (start, f"{parent}." if parent else ""):
        for out in outs:
            name = f"{nest}{out}"
            if f"{name}.weight" in file.tensors and file.shape_of(f"{name}.weight") == (D, D):
                return name
    return None


def _remedy(file: FeatureFile, inputs: list[str], output: str | None, D: int) -> str:
    names = [*inputs, *([] if output is None else [output])]
    biased = [name for name in names if f"{name}.bias" in file.tensors]
    is_plain = PLAIN_NAME.fullmatch(file.name + "".join(names)) is not None
    load = f"torch.load({file.name if is_plain else 'FILE'!r})"
    if file.name.lower().endswith(".safetensors"):
        load = load.replace("torch.load(", "load_file(")
    lines = [
        f"w = torch.cat([d[n + '.weight'] for n in {tuple(inputs)!r}])",
        # A key without a bias, as some have it, is one whose bias is zero.
        f"b = torch.cat([d.get(n + '.bias', torch.zeros({D})) for n in {tuple(inputs)!r}])",
    ]
    out = f"torch.eye({D})" if output is None else f"d[{output + '.weight'!r}]"
    out_bias = f"d[{output + '.bias'!r}]" if output in biased else f"torch.zeros({D})"
    made = (
        "torch.save({'in_proj_weight': w, 'in_proj_bias': b, "
        f"'out_proj.weight': {out}, 'out_proj.bias': {out_bias}}}, 'NEW.pt')"
    )
    imports = "import torch; from safetensors.torch import load_file"
    program = "; ".join([imports, f"d = {_inside(file, load)}", *lines, made])
    behind = "no layer behind it" if output is None else output
    return (
        f"; to use the attention of {', '.join(inputs)} alone ({behind}), make an "
        f'nn.MultiheadAttention of it: python -c "{program}", and say --weights NEW.pt and --heads'
    )


def _inside(file: FeatureFile, load: str) -> str:
    """The state dict of a checkpoint may be in a dict, whose name the reader leaves out."""
    if file.name.lower().endswith(".safetensors"):
        return load
    return f"(lambda d: d.get('state_dict', d.get('model_state_dict', d)))({load})"
