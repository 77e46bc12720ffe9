"""Features that are a result of `fusecli batch --pack` which a later run replaced or withdrew."""

from __future__ import annotations

import json
import os
import re

from fusecli.features.tensor import StoredTensor

_PACK, _INDEX = re.compile(r"fused-\d{5,}\.safetensors"), "fused.safetensors.index.json"
_LARGEST = 32 << 20  # bytes of an index that are read for a note


def note_on_earlier(stored: StoredTensor) -> list[str]:
    """The note about a tensor of a pack that the index of its folder does not name.

    Args:
        stored: the features of one side.
    """
    folder, name = os.path.split(stored.file)
    index = os.path.join(folder, _INDEX)
    if stored.key is None or not _PACK.fullmatch(name):
        return []
    if not os.path.isfile(index) or os.path.getsize(index) > _LARGEST:
        return []
    try:
        with open(index, encoding="utf-8") as file:
            now = json.load(file)["weight_map"].get(stored.key)
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return []  # not an index of packs
    if now == name:
        return []
    later = "was withdrawn" if now is None else f"was replaced by the one in {now}"
    return [f"{stored.where}: is an earlier result, which {later}, as {index} says"]
