"""Stored number types and their way to float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The types whose numbers fusecli reads, by numpy's or torch's name.
READ_TYPES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
)
# Types that numpy does not have are stored as plain bits. (ml_dtypes has them, and takes 10 ms
# to import.)
_BITS = {"bfloat16": "<u2", "float8_e4m3fn": "|u1", "float8_e5m2": "|u1"}
_BFLOAT16_BYTES = 2
# Types that are raw bytes in a .npy file, by their bytes.
_RAW = {1: "most types of 8 bits and fewer, such as float8_e4m3fn or int4", 2: "bfloat16"}
_REFUSED = {
    "O": "Python objects (a pickle), which fusecli never loads",
    "c": "complex numbers",
    "S": "strings",
    "U": "strings",
    "M": "dates",
    "m": "time spans",
}


def storage_type(name: str) -> np.dtype[np.generic]:
    """The numpy type whose bytes a stored type has (little-endian)."""
    return np.dtype(_BITS[name]) if name in _BITS else np.dtype(name).newbyteorder("<")


def refusal(dtype: np.dtype[np.generic]) -> str | None:
    """Why a numpy type is not read, as the end of a sentence; None if it is."""
    if dtype.names is not None or dtype.subdtype is not None:
        return "holds structured records, expected plain numbers"
    if dtype.kind == "V":
        made_of = _RAW.get(dtype.itemsize)
        whence = "" if made_of is None else f", which is what np.save makes of {made_of}"
        remedy = (
            ""  # its reader says how this very file is converted
            if dtype.itemsize == _BFLOAT16_BYTES
            else ": convert it to float32 where it was made"
        )
        return f"holds raw bytes ({dtype.str}){whence}{remedy}"
    if dtype.kind not in "fiub":
        what = _REFUSED.get(dtype.kind, f"type {dtype.name}")
        return f"holds {what}, expected real numbers"
    return None


def to_float32(raw: NDArray[np.generic], name: str) -> NDArray[np.float32]:
    """Convert stored numbers to float32; no copy where they are that already.

    Args:
        raw: the stored numbers; plain bits for the types numpy does not have.
        name: the stored type's name.
    """
    if name == "bfloat16":  # the upper half of a float32
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if name == "float8_e5m2":  # the upper half of a float16
        return (raw.astype(np.uint16) << np.uint16(8)).view(np.float16).astype(np.float32)
    if name == "float8_e4m3fn":
        return _e4m3fn_table()[raw.astype(np.intp)]
    with np.errstate(over="ignore"):  # what becomes infinite is reported by the finite check
        return raw.astype(np.float32, copy=False)


def from_float32(values: NDArray[np.float32], name: str) -> NDArray[np.generic]:
    """Round float32 to an output type, as stored bytes; ties to even.

    Args:
        values: the numbers.
        name: "float32", "float16" or "bfloat16" (returned as the bits, uint16).
    """
    if name == "bfloat16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        upper = (rounded >> np.uint32(16)).astype(np.uint16)
        # Rounding up the payload of a NaN could carry it into infinity.
        return np.where(np.isnan(values), np.uint16(0x7FC0), upper)
    with np.errstate(over="ignore"):
        return values.astype(storage_type(name), copy=False)


def _e4m3fn_table() -> NDArray[np.float32]:
    """All 256 float8_e4m3fn values: 4 exponent bits (bias 7), 3 of mantissa, NaN at 0x7F.

    Source: Micikevicius et al. 2022, "FP8 Formats for Deep Learning", table 1.
    """
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = np.where(
        exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
    )
    magnitude[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code >= 128, -magnitude, magnitude).astype(np.float32)
