"""What a fusion method has to define: a subclass of `Method` in a module of `methods/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, Protocol

from fusecli.fusion.base import Computing, Fusion, LoadWeights, Plan
from fusecli.fusion.layers import Layer, linear
from fusecli.fusion.literals import SIDES, MethodName, Side
from fusecli.fusion.settings import FusionSettings, Sizes
from fusecli.records import record

if TYPE_CHECKING:
    from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]


class LayerModule(Protocol):
    """What `Method.forward` is given: the layers of a method as torch has them.

    Attributes:
        config: the fusion.
    """

    @property
    def config(self) -> FusionSettings: ...

    def linear(self, name: str) -> nn.Linear:
        """One of the linear layers."""

    def project(self, x: Tensor, y: Tensor, direction: Side) -> tuple[Tensor, Tensor]:
        """The query side x and the context side y through `text_proj` and `image_proj`."""

    def mean(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """`[N, P, .]` to `[N, 1, .]`: the mean of the real tokens, zero if there is none."""


@record
class Way:
    """One row of `fusecli methods`: a method with some of its switches.

    Attributes:
        patches: how the image tokens enter the fused vector: as their "mean", or "weighed" for
            each text token and head.
        text: how the text is in the result: "unchanged" (beside the image, or with the image
            added), "projected", "times alpha", or "not kept" (it is only the query).
        switches: the switches that are on.
        projected: both sides are projected to D by `--dim`; None where the method has no
            `projected`.
    """

    patches: str
    text: str
    switches: tuple[str, ...] = ()
    projected: bool | None = None


@record
class TokenSide:
    """One side of a job, for the list of stages.

    Attributes:
        name: "text" or "image".
        letter: of its tokens, T or P.
        tokens: their number.
        width: of its features, Dt or Di.
        width_letters: "Dt" or "Di".
    """

    name: Side
    letter: str
    tokens: int
    width: int
    width_letters: str


@record
class Stage:
    """The shape at one stage of the module; `formed` is false where the plan avoids it."""

    name: str
    letters: str
    shape: tuple[int, ...]
    formed: bool


@record
class Recognised:
    """What the names and shapes in a state dict say of the module it was saved from.

    Attributes:
        fields: of `FusionSettings`.
        unknown: fields that the method reads and a state dict cannot tell; they are assumed to
            be what `FusionSettings` has as a default.
        open_question: anything else about the training that cannot be told, in words, or "".
        by_method: naming the method with `--method` settles that question.
    """

    fields: dict[str, Any]
    unknown: tuple[str, ...] = ()
    open_question: str = ""
    by_method: bool = False


@record
class Method(ABC):
    """A way to fuse: its options and their checks, its parameters, its cost, its stages for the
    report, its arithmetic, and its torch module.

    Attributes:
        name: as `--method` names it.
        fields: the fields of `FusionSettings` that this method reads besides the widths; it
            refuses the others.
        required: the `fields` that a weights file must hold.
        engines: the engines that can compute it.
        gives_weights: it has attention weights, for `--attention` and `--plot`.
        pools_context: of the context side it reads only the mean of the real tokens, so that a
            trainer may compute the means once.
        ways: the rows it has in `fusecli methods`.
    """

    name: MethodName
    fields: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    engines: tuple[str, ...] = ("numpy", "torch")
    gives_weights: bool = False
    pools_context: bool = False
    ways: tuple[Way, ...] = field(default=())

    def complete(self, given: Mapping[str, Any], image_dim: int, text_dim: int) -> dict[str, Any]:
        """Add to the given fields what the widths of the features determine.

        Args:
            given: the fields that options say.
            image_dim, text_dim: Di and Dt.
        """
        return {"embed_dim": text_dim, **given}

    def defaults(self, config: FusionSettings) -> dict[str, int]:
        """Values of the fields for which 0 stands for a size that follows from others."""
        return {}

    def check(self, config: FusionSettings) -> None:  # noqa: B027 - most have nothing to check
        """Raises:
        UsageError: the fields contradict each other.
        """

    def check_sides(  # noqa: B027 - most methods can take any side
        self, config: FusionSettings, sides: Sequence[Side], weights: str | None
    ) -> None:
        """Whether tokens of all these sides can be the query side, one after the other.

        Args:
            config: the fusion.
            sides: "text", "image" or both.
            weights: the file that fixes the widths, for the error; None where options do.

        Raises:
            UsageError: the result cannot have that side's tokens.
        """

    def offers(self, way: Way, image_dim: int, text_dim: int) -> bool:
        """Whether `fusecli methods` lists this way for features of these widths."""
        return True

    @abstractmethod
    def layers(self, config: FusionSettings) -> list[Layer]:
        """The parameters, in the order of creation."""

    def parameters(self, config: FusionSettings) -> list[str]:
        """The names of all parameters, in the order of creation."""
        return [name for layer in self.layers(config) for name in layer.shapes]

    def training_fields(
        self, given: Mapping[str, Any], width: int, heads: int, text_dim: int
    ) -> dict[str, Any]:
        """The fields that `fusecli train` sets where options do not.

        Args:
            given: the fields that options say.
            width: the width of a trained module.
            heads: the number of its heads, where it has heads.
            text_dim: Dt.
        """
        return {"embed_dim": width}

    def input_layers(self, config: FusionSettings) -> dict[str, tuple[Side, ...]]:
        """The linear layers that raw features enter by, each with the sides in its columns.

        `fusecli train` standardises the features, and folds that into these layers afterwards.
        """
        names = self.parameters(config)
        return {f"{side}_proj": (side,) for side in SIDES if f"{side}_proj.weight" in names}

    def unprojected(self, config: FusionSettings) -> tuple[Side, ...]:
        """The sides that also enter by another way than through `input_layers`, in direction
        text; `fusecli train` does not standardise these."""
        sides = self.input_layers(config).values()
        return tuple(side for side in SIDES if not any(side in layer for layer in sides))

    @abstractmethod
    def multiply_adds(self, config: FusionSettings, T: int, P: int) -> int:
        """Multiply-adds of one pair, without what is done once for a long stack.

        Args:
            config: the fusion; the text is the query side.
            T, P: text and image tokens.
        """

    @abstractmethod
    def stages(
        self,
        N: int,
        query: TokenSide,
        context: TokenSide,
        config: FusionSettings,
        plan: Plan | None,
    ) -> Iterable[Stage]:
        """The stages between the features and the fused rows.

        Args:
            N: pairs.
            query, context: the two sides.
            config: the fusion.
            plan: the order of products, where there is a choice.
        """

    @abstractmethod
    def build(
        self, config: FusionSettings, load: LoadWeights, sizes: Sizes, computing: Computing
    ) -> Fusion:
        """Load the weights that a job needs, and get ready to fuse.

        Args:
            config: the fusion.
            load: loads parameters by name, and the wanted rows of each.
            sizes: of the whole job.
            computing: where and in what.

        Raises:
            DeviceError: the device is not on this machine.
            WeightsError: a weight is NaN or infinite.
        """

    def build_module(self, config: FusionSettings) -> nn.Module | None:
        """The torch module with torch's initial weights, a `PairFusion`. Imports torch.

        Returns:
            None where a `LayeredFusion` is enough: it has the linear layers, the norms and the
            zeros of `layers`, and calls `forward`.
        """
        return None

    def forward(
        self,
        module: LayerModule,
        x: Tensor,
        y: Tensor,
        x_real: Tensor | None,
        y_real: Tensor | None,
        direction: Side,
    ) -> Tensor:
        """The fused rows in torch, plainly; `fusecli train` trains this, and tests hold `build` to
        it.

        Args:
            module: has the layers.
            x: the query side, `[N, T, .]`; masked tokens are zero.
            y: the context side, `[N, P, .]`; masked tokens are zero.
            x_real, y_real: bool `[N, T]` and `[N, P]`, true for real tokens; None if all are.
            direction: the query side.

        Returns:
            `[N, T, D]`; masked rows hold anything.
        """
        raise NotImplementedError(f"method {self.name} has neither forward nor build_module")

    def recognise(self, shapes: Shapes, image_dim: int | None) -> Recognised | None:
        """The module that a state dict without metadata was saved from.

        Args:
            shapes: of all its tensors.
            image_dim: Di of the features at hand, or None where none are.

        Returns:
            None where these are not this method's parameters.
        """
        return None


def projected_widths(shapes: Shapes) -> dict[str, Any] | None:
    """D, Di and Dt from the shapes of `text_proj` and `image_proj`; None where they are not
    two matrices."""
    text, image = shapes.get("text_proj.weight", ()), shapes.get("image_proj.weight", ())
    if len(text) != 2 or len(image) != 2 or 0 in text + image:
        return None
    return {"embed_dim": text[0], "image_dim": image[1], "text_dim": text[1]}


def has_layers(shapes: Shapes, *starts: str) -> bool:
    """Whether there are tensors whose names begin so."""
    return any(name.startswith(starts) for name in shapes)


def projections(config: FusionSettings, width: int) -> list[Layer]:
    """A linear layer in front of each side, `text_proj` and `image_proj`."""
    return [
        linear("text_proj", config.text_dim, width),
        linear("image_proj", config.image_dim, width),
    ]


def heads_of(given: Mapping[str, Any], width: int, heads: int) -> dict[str, Any]:
    """The fields `embed_dim` and `num_heads` of a trained module; the number of heads is left to
    its default where it does not divide the given width."""
    fits = given.get("embed_dim", width) % heads == 0
    return {"embed_dim": width, **({"num_heads": heads} if fits else {})}
