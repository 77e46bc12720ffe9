"""Limits of what is read from a file without an option that allows more.

A small file can claim, or unpack to, any size. Everything that is read before or besides the
numbers that were asked for is bounded; the environment variable FUSECLI_READ_LIMIT raises the
bounds for those who have such files.
"""

from __future__ import annotations

import os
import re

from fusecli.errors import UsageError

VARIABLE = "FUSECLI_READ_LIMIT"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def read_limit(usual: int) -> int:
    """The bound to use: the usual one in bytes, or what the environment says.

    Raises:
        UsageError: the variable holds no size.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return usual
    match = re.fullmatch(r"(\d{1,15})\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"{VARIABLE}={text}: expected a size in bytes, such as 500M or 8G")
    return int(match[1]) * _UNITS[match[2].upper()]
