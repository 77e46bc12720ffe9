"""The index of packs: which pack holds which tensor, over all shards.

It has the form of sharded checkpoints on the Hugging Face Hub (`weight_map`,
`metadata.total_size`).
"""

from __future__ import annotations

import json

from fusecli.batch.store.folder import OutputFolder
from fusecli.batch.store.history import latest_entries
from fusecli.batch.store.layout import INDEX
from fusecli.batch.store.pack_headers import PackHeaders, keyed_by
from fusecli.errors import OutputError
from fusecli.features.atomic import StagedFile


def write_index(folder: OutputFolder) -> str:
    """Write the index; holds 8 bytes a pair in memory.

    Args:
        folder: the output folder, which nobody else writes to.

    Returns:
        The index file's path.

    Raises:
        OutputError: it cannot be written.
    """
    path = folder.inside(INDEX)
    try:
        status = folder.root.status(INDEX)
    except OSError as error:
        raise folder.failed(error, path) from None
    if folder.protected.holds(status):
        raise OutputError(f"{path}: is an input of this run, and inputs are never changed")
    headers = PackHeaders(folder.root)
    total, comma = 0, b"\n"
    with StagedFile(path) as staged:
        staged.begin().write(b'{\n  "weight_map": {')
        for entry in latest_entries(folder.root, folder.journals, folder.spec):
            if entry.at is None or not headers.holds(entry):
                continue
            total += entry.at[1] - entry.at[0]
            for key in keyed_by(entry.id, entry.shapes or {}):
                line = f"    {json.dumps(key)}: {json.dumps(entry.output)}"
                staged.write(comma + line.encode())
                comma = b",\n"
        end = f'\n  }},\n  "metadata": {{\n    "total_size": {total}\n  }}\n}}\n'
        staged.write(end.encode())
        staged.publish()
    return path
