"""Files of PyTorch that hold a list or a dict of samples: what to do about them."""

from __future__ import annotations

from fusecli.features.axes import Side
from fusecli.features.file import FeatureFile
from fusecli.features.layers import PLAIN_NAME

_PHOTOS = (".jpg", ".jpeg", ".png", ".webp")


def remedy_for_list(file: FeatureFile, side: Side) -> str:
    """How to use the tensors of a list, as the middle of a sentence; "" if there is none.

    Args:
        file: open; none of its tensors is known as features.
        side: whose features were looked for.
    """
    keys = [key for key in file.tensors if len(file.shape_of(key)) >= 2]
    nests = {key.rpartition(".")[0] for key in keys}
    if all(key.lower().endswith(_PHOTOS) for key in keys):
        nests = {""}  # cat.jpg is one word in the file
    if len(keys) < 2 or len(nests) != 1 or not file.name.lower().endswith((".pt", ".pth", ".ckpt")):
        return ""
    (nest,) = nests
    names = [key.removeprefix(f"{nest}.") for key in keys]
    numbered = sorted(names, key=lambda name: (len(name), name)) == [
        str(number) for number in range(len(names))
    ]
    start = f"{nest}." if nest else ""
    if nest.endswith("hidden_states") and numbered:
        return f" {start}{len(names) - 1} (of the hidden states of {len(names)} layers the last)"
    widths = {file.shape_of(key)[-1] for key in keys}
    if len(widths) != 1 or not (numbered or not nest):
        return ""
    name = repr(file.name if PLAIN_NAME.fullmatch(file.name) else "FILE")
    inside = "".join(f"[{part!r}]" for part in nest.split(".") if part)
    program = (
        f"import torch; from safetensors.torch import save_file; d = torch.load({name}){inside}; "
        f"d = d.items() if hasattr(d, 'items') else enumerate(d); "
        "save_file({str(k): v.contiguous() for k, v in d}, 'NEW.safetensors')"
    )
    return (
        f" {start}{names[0]} for one of them (if each is a sample, fusecli batch takes them from "
        f'NEW.safetensors: python -c "{program}")'
    )
