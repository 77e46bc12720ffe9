"""The closed sets of values of training. Imports nothing heavy, so that `--help` may use it."""

from __future__ import annotations

from typing import Literal

from fusecli.fusion.literals import MethodName

Task = Literal["classify", "multilabel", "regress", "tag", "match"]
TrainDtype = Literal["float32", "bfloat16"]
ScoredPart = Literal["test", "out-of-fold", "given"]
TrainMethod = MethodName | Literal["auto"]
