"""The maps in a picture: image tokens in colour, over a photo where there is one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.maps.boxes import Boxes
from fusecli.maps.view import Scale

_MISSING: dict[str, Any] = {
    "facecolor": "white",
    "edgecolor": "0.55",
    "hatch": "////",
    "linewidth": 0.0,
}
# How much of the colour lies over the photo, which is grey and pale there so that colours stay
# readable; the scale is drawn over its mean grey.
_COVER = 0.62
_MEAN_GREY = 0.75


class Painter:
    """Draws maps in the colours of one scale.

    Args:
        scale: of all of them.
    """

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.colours: Any = _colours()

    def cells(
        self, axes: Any, times: NDArray[np.float64], under: NDArray[np.float64] | None
    ) -> None:
        """Draw image tokens that lie in a grid, or in rows.

        Args:
            axes: where.
            times: `[rows, columns]`; NaN is hatched.
            under: a photo from `pale`, or None.
        """
        missing = ~np.isfinite(times)
        if missing.any():
            from matplotlib.patches import Rectangle

            style = _MISSING
            if under is not None:
                grey = np.repeat(under[..., None], 3, axis=2)
                axes.imshow(grey, aspect="auto", interpolation="nearest", zorder=-1)
                style = {**_MISSING, "facecolor": "none"}
            whole = Rectangle((0, 0), 1, 1, transform=axes.transAxes, zorder=0, **style)
            axes.add_patch(whole)
        cells = self.colours(self.scale.share(np.where(missing, 0, times)))  # [rows, columns, 4]
        cells[..., 3] = ~missing
        if under is not None:
            h, w = under.shape[:2]
            down = np.arange(h) * cells.shape[0] // h
            across = np.arange(w) * cells.shape[1] // w
            cells = cells[down][:, across]  # [h, w, 4]
            cells[..., :3] = _COVER * cells[..., :3] + (1 - _COVER) * under[..., None]
        axes.imshow(cells, aspect="auto", interpolation="nearest", zorder=1)

    def regions(
        self,
        axes: Any,
        boxes: Boxes,
        times: NDArray[np.float64],
        under: NDArray[np.float64] | None,
        pixels: tuple[int, int],
    ) -> None:
        """Draw image tokens that are regions where they are.

        Args:
            axes: where.
            boxes: of the regions.
            times: `[P]`; regions with NaN are left out.
            under: a photo from `pale`, or None.
            pixels: width and height of the picture.
        """
        from matplotlib.collections import PatchCollection
        from matplotlib.patches import Rectangle

        painted = boxes.painted(times, *pixels)  # [h, w]
        inside = np.isfinite(painted)
        cells = self.colours(self.scale.share(np.where(inside, painted, 0)))  # [h, w, 4]
        if under is not None:
            cells[..., :3] = _COVER * cells[..., :3] + (1 - _COVER) * under[..., None]
            cells[~inside, :3] = under[~inside, None]
        else:
            cells[..., 3] = inside
        axes.imshow(cells, aspect="auto", interpolation="nearest", extent=(0, 1, 1, 0), zorder=1)
        known = np.flatnonzero(np.isfinite(times) & np.isfinite(boxes.places).all(axis=1))
        known = known[np.argsort(times[known], kind="stable")]
        shapes = [Rectangle((x0, y0), x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes.places[known]]
        # Every region has its edge; those above the uniform weight are to be seen first.
        edges = self.colours(self.scale.share(times[known]))
        faint = times[known] <= 1
        edges[faint] = (1, 1, 1, 0.3)
        lines = PatchCollection(
            shapes,
            facecolor="none",
            edgecolor=edges,
            linewidth=np.where(faint, 0.4, 0.9),
            zorder=2,
        )
        axes.add_collection(lines, autolim=False)

    def bar(self, steps: int, over_photo: bool) -> NDArray[np.float64]:
        """The colours of the scale from its start to its end, `[1, steps, 3]`."""
        colours: NDArray[np.float64] = self.colours(np.linspace(0, 1, steps))[None, :, :3]
        return _COVER * colours + (1 - _COVER) * _MEAN_GREY if over_photo else colours


def pale(photo: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A photo `[h, w, 3]` as grey `[h, w]` of little contrast, light enough to lie under colour."""
    grey: NDArray[np.float64] = photo @ np.array([0.2126, 0.7152, 0.0722]) / 255
    spread = float(grey.std()) or 1.0
    pale: NDArray[np.float64] = _MEAN_GREY + 0.14 * (grey - grey.mean()) / spread
    return np.clip(pale, 0.35, 1.0)


def resized(photo: NDArray[np.uint8], w: int, h: int) -> NDArray[np.uint8]:
    """A photo at another size; w and h in pixels."""
    from PIL import Image

    return np.asarray(Image.fromarray(photo).resize((w, h), Image.Resampling.LANCZOS))


def _colours() -> Any:
    """Perceptually even, and the same to readers who see no red or no green.

    Source: Nuñez, Anderton, Renslow 2018, "Optimizing colormaps with consideration for color
    vision deficiency".
    """
    import matplotlib

    return matplotlib.colormaps["cividis"]
