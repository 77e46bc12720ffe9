"""The closed sets of values of the options of attention maps."""

from typing import Literal

BoxFormat = Literal["xyxy", "yxyx", "xywh", "cxcywh"]
BoxUnits = Literal["pixels", "relative"]
