"""Many pairs: a run that can be stopped at any moment, and goes on where it was.

options.py      the options
run_spec.py     what a run computes, decided once for all its parts
resolve.py      how the run spec is decided from the first pairs
pair_inputs.py  one pair, read and checked against the run
worker.py       fuses pairs; knows nothing of what follows
tuning.py       amounts and intervals, which tests change
store/          results on disk, the journal, the output folder with its record and locks
ray/            the work on Ray's workers, and reaching Ray
run.py          all of it together
"""

from __future__ import annotations

from fusecli.batch.merge_shards import merge
from fusecli.batch.options import BatchOptions, RayOptions, parse_shard
from fusecli.batch.run import run_batch
from fusecli.batch.store.layout import Shard
from fusecli.batch.summary import Summary
from fusecli.features.pair_inputs import ReadOptions

# Names of 0.1.0 that callers may still use.
OnRay, Reading = RayOptions, ReadOptions

__all__ = [
    "BatchOptions",
    "OnRay",
    "RayOptions",
    "ReadOptions",
    "Reading",
    "Shard",
    "Summary",
    "merge",
    "parse_shard",
    "run_batch",
]
