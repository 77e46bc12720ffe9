"""A photo to lay a map over: read with Pillow, never larger than a picture needs."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, shortened
from fusecli.features.file import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

# Formats that Pillow decodes by itself; for some others it runs other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_MOST_PIXELS = 100_000_000  # a header can claim any size, and decoding takes memory for it
_SIDE = 1024  # pixels kept


def read_photo_and_size(path: str) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Read a photo, turned upright and made small.

    Args:
        path: JPEG, PNG, WebP, BMP, GIF or TIFF.

    Returns:
        uint8 `[h, w, 3]`, no side over 1024; and the width and height in pixels that the upright
        photo has in its file.

    Raises:
        FeatureFileError: missing, no picture, damaged, with too many pixels, or of numbers of
            which none is white.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    with open_regular(path) as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, and about size, which is checked here
        try:
            with Image.open(handle, formats=_FORMATS) as image:
                w, h = image.size
                if w * h > _MOST_PIXELS:
                    raise FeatureFileError(
                        f"{path}: has {w:,} x {h:,} pixels, at most {_MOST_PIXELS:,} are read: "
                        "make it smaller"
                    )
                image.draft("RGB", (_SIDE, _SIDE))  # a JPEG decodes at a fraction of its size
                image.thumbnail((_SIDE, _SIDE))
                upright = ImageOps.exif_transpose(image)
                size = (w, h) if upright.size == image.size else (h, w)
                return _eight_bits(upright, path), size
        except UnidentifiedImageError:
            raise FeatureFileError(
                f"{path}: is no picture that fusecli reads ({', '.join(_FORMATS)})"
            ) from None
        except Image.DecompressionBombError:
            raise FeatureFileError(f"{path}: has more than {_MOST_PIXELS:,} pixels") from None
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
            # What Pillow's decoders raise for damaged files.
            why = shortened(str(error) or type(error).__name__)
            raise FeatureFileError(f"{path}: is a damaged picture: {why}") from None


def _eight_bits(image: Picture, path: str) -> NDArray[np.uint8]:
    """As `[h, w, 3]`. Pillow's own conversion makes white of every grey above 255."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        grey = np.asarray(image, np.uint16)
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "whole numbers of 32 bits" if image.mode == "I" else "float numbers"
        raise FeatureFileError(f"{path}: holds {kind}, of which none is white: save it with 8 bits")
    return np.asarray(image.convert("RGB"), np.uint8)
