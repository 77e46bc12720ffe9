"""The closed sets of values of batch options. Imports nothing, so that `--help` may use it."""

from typing import Literal, get_args

OnError = Literal["skip", "stop"]

ON_ERROR: tuple[OnError, ...] = get_args(OnError)
