"""Cross-attention, in the cheapest order of products.

method.py     options and checks, parameters, cost; what the other modules of this package are for
plan.py       which order of products is the cheapest
operands.py   the weights, folded and placed for one order
products.py   the arithmetic
fusion.py     chunks of pairs, with masks, directions and threads
stages.py     the list of stages for the report
"""

from __future__ import annotations

from fusecli.fusion.methods.attention.method import METHOD

__all__ = ["METHOD"]
