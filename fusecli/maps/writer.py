"""Attention maps: which share of its attention each text token gives to each image token.

A row of a map sums to 1 over the real image tokens that the attention mask allows, and is 0 for
the others. With a null token, the difference to 1 is the weight of the null token, which has no
column. Rows of masked text tokens, and of text tokens that may attend to nothing, are 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import UsageError, counted
from fusecli.features.atomic import Staged
from fusecli.features.formats.base import OutputContents
from fusecli.features.writer import ATTENTION_KEY, FeatureWriter
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.literals import Direction
from fusecli.fusion.methods import methods_with, no_attention
from fusecli.maps.literals import BoxFormat, BoxUnits
from fusecli.records import record
from fusecli.report.parts import MapsPart


@record
class MapOptions:
    """The options of attention maps; the fields have the names of the options.

    Attributes:
        attention: the file that receives the weights, or None.
        per_head: every head's own weights in it, not their mean.
        plot: the picture's file, or None.
        show: a map for the terminal is made.
        sample: which pair of a stack is drawn; None means 0.
        grid: `14x14`, `14x14+1` or "none"; None guesses.
        image_file: a photo under the maps.
        boxes: a file with a box for each image token, `FILE` or `FILE:KEY`; "none" ignores those
            beside the features; None uses them.
        box_format: what the four numbers of a box are; None tells it by the numbers.
        box_units: pixels, or shares of the image's size; None tells it by the numbers.
        tokens: a file that names the text tokens.
        layer: of a transformer, whose attention is shown, from 0; None means the last.
    """

    attention: str | None = None
    per_head: bool = False
    plot: str | None = None
    show: bool = False
    sample: int | None = None
    grid: str | None = None
    image_file: str | None = None
    boxes: str | None = None
    box_format: BoxFormat | None = None
    box_units: BoxUnits | None = None
    tokens: str | None = None
    layer: int | None = None

    def __post_init__(self) -> None:
        for name in ("attention", "plot", "image_file", "boxes", "tokens"):
            path = getattr(self, name)
            object.__setattr__(self, name, None if path is None else os.fspath(path))

    @property
    def drawn(self) -> bool:
        """Whether a pair's map is drawn, in a picture or in the terminal."""
        return self.plot is not None or self.show

    def check(self) -> None:
        """Raises:
        UsageError: an option without the one it belongs to, or stdout for a file.
        """
        if self.per_head and self.attention is None:
            raise UsageError("--per-head goes with --attention FILE; pictures show the heads' mean")
        for option, value in (("--sample", self.sample), ("--tokens", self.tokens)):
            if value is not None and not self.drawn:
                raise UsageError(f"{option} goes with --plot FILE or --show")
        if self.layer is not None and self.attention is None and not self.drawn:
            raise UsageError("--layer goes with --attention FILE, --plot FILE or --show")
        for option, value in (
            ("--grid", self.grid),
            ("--image-file", self.image_file),
            ("--boxes", self.boxes),
            ("--box-format", self.box_format),
            ("--box-units", self.box_units),
        ):
            if value is not None and self.plot is None:
                raise UsageError(
                    f"{option} goes with --plot FILE; --show prints one row of numbered tokens"
                    if self.show
                    else f"{option} goes with --plot FILE"
                )
        if self.grid is not None and self.boxes not in (None, "none"):
            raise UsageError("--grid and --boxes both say where image tokens are: leave one out")
        for option, path in (("--attention", self.attention), ("--plot", self.plot)):
            if path == "-":
                raise UsageError(f"{option} -: writes a file; only the fused rows go to stdout")

    def check_method(self, config: FusionConfig, direction: Direction) -> None:
        """Raises:
        UsageError: there are no text tokens that attend to image tokens, or no such layer.
        """
        if self.layer is not None and "layers" not in config.how.fields:
            having = " or ".join(methods_with("layers"))
            raise UsageError(f"--layer belongs to --method {having}; {config.method} has no layers")
        if self.attention is None and not self.drawn:
            return
        if not config.how.gives_weights:
            raise UsageError(no_attention("--attention, --plot or --show", config.method))
        if direction == "image":
            raise UsageError(
                "--attention, --plot and --show are of text tokens that attend to image tokens: "
                "say --direction text or both"
            )
        if self.layer is not None and not 0 <= self.layer < config.layers:
            raise UsageError(
                f"--layer {self.layer}: the module has {counted(config.layers, 'layer')}, "
                "counted from 0"
            )

    def layer_of(self, config: FusionConfig) -> int | None:
        """The layer whose attention is shown; None for methods without layers."""
        if "layers" not in config.how.fields:
            return None
        return config.layers - 1 if self.layer is None else self.layer

    def note_on_layer(self, config: FusionConfig) -> str | None:
        """The note about a layer that no option chose."""
        layer = self.layer_of(config)
        wanted = self.attention is not None or self.drawn
        if not wanted or layer is None or self.layer is not None or config.layers == 1:
            return None
        return (
            f"the attention shown is that of layer {layer}, the last of {config.layers} (counted "
            "from 0): --layer chooses another"
        )


class MapSink:
    """Receives the maps of all chunks: writes them to a file, and keeps one sample's to draw it.

    Args:
        options: what is wanted.
        shape: of the file's tensor.
        metadata: for the file, as `FeatureWriter` takes it.
        sample: the one to keep, or None.
        layer: whose attention it is, for the report; None for methods without layers.
        replace: a file of that name is replaced, also one that appears meanwhile.
    """

    def __init__(
        self,
        options: MapOptions,
        shape: tuple[int, ...],
        metadata: dict[str, Any],
        sample: int | None,
        layer: int | None = None,
        replace: bool = False,
    ) -> None:
        self._layer = layer
        self._options, self._shape, self._sample = options, shape, sample
        self._writer: FeatureWriter | None = None
        if options.attention is not None:
            # No smaller type: the rows must sum to 1.
            contents = OutputContents({ATTENTION_KEY: shape}, "float32", metadata)
            self._writer = FeatureWriter(options.attention, contents, replace)
        self.kept: NDArray[np.float32] | None = None  # [H, T, P]

    def begin(self) -> MapSink:
        """Make the file, under its temporary name.

        Raises:
            OutputError: the folder or the disk does not allow it.
        """
        if self._writer is not None:
            self._writer.begin()
        return self

    def __enter__(self) -> MapSink:
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.__exit__(*error)

    def chunk(
        self,
        start: int,
        stop: int,
        T: int,
        image_mask: NDArray[np.bool_] | None,
        text_mask: NDArray[np.bool_] | None,
        attention_mask: NDArray[np.bool_] | None = None,
    ) -> ChunkMaps | None:
        """The receiver of the weights of samples `start:stop`; None if none of them is wanted.

        Several threads may call it, each for its own chunk.

        Args:
            start, stop: its samples.
            T: text tokens of a sample.
            image_mask, text_mask, attention_mask: of the chunk, as `Fusion.fuse` gets them.
        """
        sample = None
        if self._sample is not None and start <= self._sample < stop:
            sample = self._sample - start
        if self._writer is None and sample is None:
            return None
        written = self._writer is not None
        has_weights = _has_weights(image_mask, text_mask, attention_mask)
        return ChunkMaps(T, has_weights, written, self._options.per_head, sample)

    def write(self, chunk: ChunkMaps | None) -> None:
        """Write a finished chunk; they come in the order of the samples.

        Raises:
            OutputError: the disk is full.
        """
        if chunk is None:
            return
        if chunk.kept is not None:
            self.kept = chunk.kept
        if self._writer is not None:
            for part in chunk.parts:
                # One by one if it takes memory to bring them into the file's order.
                for one in [part] if part.flags.c_contiguous else part:
                    self._writer.append(one)

    @property
    def described(self) -> MapsPart | None:
        """The report's entry for the file."""
        if self._writer is None or self._options.attention is None:
            return None
        letters = "HTP" if self._options.per_head else "TP"
        return MapsPart(
            file=self._options.attention,
            key=self._writer.key,
            shape=list(self._shape),
            axes=letters if len(self._shape) == len(letters) else f"N{letters}",
            dtype="float32",
            bytes=self._writer.nbytes,
            layer=self._layer,
        )

    def finish(self) -> None:
        """The file is complete under its temporary name.

        Raises:
            OutputError: the disk is full.
        """
        if self._writer is not None:
            self._writer.finish()

    @property
    def staged(self) -> list[Staged]:
        """The file, if one is written, to be published with the result."""
        return [] if self._writer is None else [self._writer.staged]


class ChunkMaps:
    """The maps of one chunk, computed from its weights part by part.

    Args:
        T: text tokens of a sample.
        has_weights: bool `[n or 1, T or 1]`, false for text tokens whose weights are zero; None
            where all have some.
        written: keep all maps, to be written.
        per_head: as `[., H, T, P]`, else their mean `[., T, P]`.
        sample: which sample's weights of every head to keep, or None.
    """

    def __init__(
        self,
        T: int,
        has_weights: NDArray[np.bool_] | None,
        written: bool,
        per_head: bool,
        sample: int | None,
    ) -> None:
        self._T, self._sample = T, sample
        self._has_weights = has_weights
        self._written, self._per_head = written, per_head
        self.parts: list[NDArray[np.float32]] = []  # to be written, in the order of the samples
        self.kept: NDArray[np.float32] | None = None  # [H, T, P]
        self._done = 0

    def append(self, part: NDArray[np.float32]) -> None:
        """Take the weights of the next samples `[g, H, T, P]`.

        Of one image for all, whose texts were one long text, `[1, H, n T, P]`.
        """
        g, H, rows, P = part.shape
        if rows != self._T:
            g = rows // self._T
            part = part[0].reshape(H, g, self._T, P).swapaxes(0, 1)
        samples = slice(self._done, self._done + g)
        if self._has_weights is not None:
            part = _zeroed(part, _rows(self._has_weights, samples))
        if self._sample is not None and samples.start <= self._sample < samples.stop:
            self.kept = part[self._sample - samples.start].copy()
        if self._written:
            self.parts.append(part if self._per_head else part.mean(axis=1))
        self._done += g

    def extend(self, parts: Iterable[NDArray[np.float32]]) -> None:
        """Take several."""
        for part in parts:
            self.append(part)


def _has_weights(
    image_mask: NDArray[np.bool_] | None,
    text_mask: NDArray[np.bool_] | None,
    attention_mask: NDArray[np.bool_] | None,
) -> NDArray[np.bool_] | None:
    """The text tokens that are real and may attend to a real image token, `[n or 1, T or 1]`."""
    if attention_mask is not None:
        allowed = attention_mask if image_mask is None else attention_mask & image_mask[:, None]
        attends: NDArray[np.bool_] = np.asarray(allowed.any(axis=2))
        return attends if text_mask is None else attends & text_mask
    if image_mask is None:
        return text_mask
    real: NDArray[np.bool_] = np.asarray(image_mask.any(axis=1, keepdims=True))
    return real if text_mask is None else real & text_mask


def _rows(mask: NDArray[np.bool_], samples: slice) -> NDArray[np.bool_]:
    return mask if len(mask) == 1 else mask[samples]


def _zeroed(part: NDArray[np.float32], kept: NDArray[np.bool_]) -> NDArray[np.float32]:
    """`[g, H, T, P]` with zeros where `kept` `[g or 1, T or 1]` is false."""
    return part if kept.all() else np.where(kept[:, None, :, None], part, np.float32(0))
