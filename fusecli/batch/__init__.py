"""Many pairs: a run that can be stopped at any moment, and goes on where it was.

options.py   what it can be told
spec.py      what it computes, settled once for all its parts
opening.py, reading.py   one pair from its files
work.py      some pairs fused; knows nothing of what follows
files.py, packs.py   results on disk
journal.py   what was done
folder.py    the output folder: record, locks
on_ray.py, cluster.py   the work on Ray's workers, and reaching Ray
run.py       all of it together
"""

from __future__ import annotations

from fusecli.batch.options import BatchOptions, OnRay, Reading, Shard, parse_shard
from fusecli.batch.run import merge, run_batch
from fusecli.batch.summary import Summary

__all__ = [
    "BatchOptions",
    "OnRay",
    "Reading",
    "Shard",
    "Summary",
    "merge",
    "parse_shard",
    "run_batch",
]
