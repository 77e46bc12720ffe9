"""Results as the bytes of files, in any format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fusecli.features.formats.base import Buffers, Encode, bytes_of
from fusecli.features.formats.table import WRITABLE_ENDINGS, writable_format_of
from fusecli.features.literals import OutDtype

__all__ = ["Buffers", "Encoder", "bytes_of"]


class Encoder:
    """Makes files.

    Args:
        dtype: of the numbers: "float32", "float16" or "bfloat16".
        metadata: of files that have some.
    """

    def __init__(self, dtype: OutDtype, metadata: dict[str, Any]) -> None:
        self._encoders: dict[str, Encode] = {}
        for ending in WRITABLE_ENDINGS:
            found = writable_format_of(f"x{ending}")
            assert found is not None
            self._encoders[ending] = found.encoder(dtype, metadata)

    def encode(self, tensors: Mapping[str, NDArray[Any]], ending: str) -> Buffers:
        """The file's bytes, in pieces.

        Args:
            tensors: by name, as they are stored (bfloat16 as its bits), contiguous.
            ending: one of `WRITABLE_ENDINGS`; ".npy" holds one tensor.
        """
        return self._encoders[ending](tensors)
