"""State dicts of an attention whose query, key and value are linear layers of their own.

BERT, ViT, CLIP, BLIP and diffusers store it so. fusecli reads the layout of
`nn.MultiheadAttention`; this says how one is made of the other.
"""

from __future__ import annotations

from fusecli.features.file import FeatureFile
from fusecli.features.python_path import Path, in_python, indexed, is_plain

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
    known = in_python(file)
    paths = known.paths
    kinds = [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    found = {key: paths[key] for key in kinds if key in paths}
    plain = is_plain(file.name, found.values())
    name = repr(file.name if plain else "FILE")
    is_safe = file.name.lower().endswith(".safetensors")
    load = f"load_file({name})" if is_safe else known.torch_load(name)
    nest = _common_nest(list(found.values()))

    def tensor(key: str, otherwise: str = "") -> str:
        return f"d{indexed(found[key][len(nest) :])}" if key in found else otherwise

    zeros = f"torch.zeros({D})"
    weights = ", ".join(tensor(f"{name}.weight") for name in inputs)
    # A key without a bias, as some have it, is one whose bias is zero.
    biases = ", ".join(tensor(f"{name}.bias", zeros) for name in inputs)
    made = {
        "in_proj_weight": f"torch.cat([{weights}])",
        "in_proj_bias": f"torch.cat([{biases}])",
        "out_proj.weight": tensor(f"{output}.weight", f"torch.eye({D})"),
        "out_proj.bias": tensor(f"{output}.bias", zeros),
    }
    state = ", ".join(f"{key!r}: {value}" for key, value in made.items())
    command = known.command(
        "import torch; from safetensors.torch import load_file; "
        f"d = {load}{indexed(nest)}; "
        f"torch.save({{{state}}}, 'NEW.pt')"
    )
    behind = "no layer behind it" if output is None else output
    return (
        f"; to use the attention of {', '.join(inputs)} alone ({behind}), make an "
        f"nn.MultiheadAttention of it: {command}, and say --weights NEW.pt and --heads"
    )


def _common_nest(paths: list[Path]) -> Path:
    """The keys that all paths begin with, without the last of each."""
    shortest = min(paths, key=len)
    common = 0
    while common < len(shortest) - 1 and len({path[: common + 1] for path in paths}) == 1:
        common += 1
    return shortest[:common]
