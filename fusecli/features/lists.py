"""Files of PyTorch that hold a list or a dict of samples: what to do about them."""

from __future__ import annotations

from fusecli.features.axes import Side
from fusecli.features.file import FeatureFile
from fusecli.features.formats.table import TORCH_ENDINGS
from fusecli.features.python_path import in_python, indexed, is_plain


def remedy_for_list(file: FeatureFile, side: Side) -> str:
    """How to use the tensors of a list, as the middle of a sentence; "" if there is none.

    Args:
        file: open; none of its tensors is known as features.
        side: whose features were looked for.
    """
    if not file.name.lower().endswith(TORCH_ENDINGS):
        return ""
    keys = [key for key in file.tensors if len(file.shape_of(key)) >= 2]
    if len(keys) < 2:
        return ""
    known = in_python(file)
    paths = known.paths
    nests = {paths[key][:-1] for key in keys}
    if len(nests) != 1:
        return ""
    (nest,) = nests
    names = [str(paths[key][-1]) for key in keys]
    numbered = sorted(names, key=lambda name: (len(name), name)) == [
        str(number) for number in range(len(names))
    ]
    if numbered and nest and str(nest[-1]).endswith("hidden_states"):
        last = keys[names.index(str(len(names) - 1))]
        return f" {last} (of the hidden states of {len(names)} layers the last)"
    widths = {file.shape_of(key)[-1] for key in keys}
    joined = keys[0].removesuffix(names[0])  # with dots, without a name that the reader leaves out
    if len(widths) != 1 or not (numbered or not joined):
        return ""
    plain = is_plain(file.name, [nest])
    name, inside = (repr(file.name), indexed(nest)) if plain else ("'FILE'", "")
    command = known.command(
        "import torch; from safetensors.torch import save_file; "
        f"d = {known.torch_load(name)}{inside}; "
        "d = d.items() if hasattr(d, 'items') else enumerate(d); "
        # Tensors of a list may share memory, and strings may lie among them.
        "save_file({str(k): v.contiguous().clone() for k, v in d if torch.is_tensor(v)}, "
        "'NEW.safetensors')"
    )
    return (
        f" {keys[0]} for one of them (if each is a sample, fusecli batch takes them from "
        f"NEW.safetensors: {command})"
    )
