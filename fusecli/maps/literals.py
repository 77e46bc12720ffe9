"""The values that options of attention maps can have."""

from typing import Literal

BoxFormat = Literal["xyxy", "yxyx", "xywh", "cxcywh"]
BoxUnits = Literal["pixels", "relative"]
