"""What all fusions have in common as torch modules: shapes, masks and directions.

The letters are in `features/axes.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusecli.errors import ShapeError, UsageError
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.layers import Layer
from fusecli.fusion.literals import Side
from fusecli.fusion.methods import no_attention
from fusecli.fusion.settings import FusionSettings


class PairFusion(nn.Module):
    """What all fusions of image and text tokens share: shapes, masks, directions.

    The query side gets a fused vector for each of its tokens, the other one is the context side.
    A subclass computes that vector in `fuse`.

    Attributes:
        config: what it is.
    """

    config: FusionConfig

    def forward(
        self,
        image_feat: Tensor,
        text_feat: Tensor,
        *,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        allow_empty_image: bool = False,
        direction: Side = "text",
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Fuse one pair, or a batch of pairs that do not see each other.

        Args:
            image_feat: `[P, Di]` (or `[Di]`, one global vector), in a batch `[N, P, Di]`.
            text_feat: `[T, Dt]`, in a batch `[N, T, Dt]`; the same number type.
            image_mask: `[P]` / `[N, P]`, 1 or true is a real token. A masked token has no
                influence, whatever is stored in it.
            text_mask: `[T]` / `[N, T]`; a masked row of the result is zero.
            allow_empty_image: a query token without any context token to attend to gets a
                context of zero: that of an image (the context side) that is all masked, or one
                that the attention mask allows nothing.
            direction: the query side: "text", or "image" with the same weights.
            attention_mask: `[T, P]` / `[N, T, P]`, 1 or true where a text token may attend to
                an image token (direction "image": that image token to that text token). Torch's
                `attn_mask` is the opposite: true where it may not.

        Returns:
            `[T, D]`, in a batch `[N, T, D]`; with direction "image" P instead of T.

        Raises:
            ShapeError: shapes that do not belong together, or a query token without any context
                token to attend to.
            UsageError: no such direction, or none that a gate allows; an attention mask for a
                method without attention.
        """
        _check_shapes(self.config, image_feat, text_feat)
        self.config.check_direction(direction)
        text = text_feat.reshape(-1, *text_feat.shape[-2:])  # [N, T, Dt]
        image = image_feat.reshape(len(text), -1, image_feat.shape[-1])  # [N, P, Di]
        sides = {"text": _masked(text, text_mask), "image": _masked(image, image_mask)}
        context: Side = "image" if direction == "text" else "text"
        (x, x_real), (y, y_real) = sides[direction], sides[context]
        if attention_mask is not None:
            allowed = self._allowed(attention_mask, len(text), text.shape[1], image.shape[1])
            y_real = _both(allowed if direction == "text" else allowed.mT, y_real)
        if y_real is not None and not allow_empty_image:
            _refuse_empty(x_real, y_real, direction, context)
        fused = self.fuse(x, y, x_real, y_real, direction)
        if x_real is not None:
            fused = fused.masked_fill(~x_real.unsqueeze(-1), 0.0)
        result: Tensor = fused if text_feat.dim() == 3 else fused[0]
        return result

    def fuse(
        self, x: Tensor, y: Tensor, x_real: Tensor | None, y_real: Tensor | None, direction: Side
    ) -> Tensor:
        """The fused rows of a batch.

        Args:
            x: the query side, `[N, T, .]`; masked tokens are zero.
            y: the context side, `[N, P, .]`; masked tokens are zero.
            x_real, y_real: bool `[N, T]` and `[N, P]`, true for real tokens; None if all are.
                For methods with attention y_real can be `[N, T, P]`: the context tokens that
                each query token may attend to.
            direction: the query side, "text" or "image".

        Returns:
            `[N, T, D]`; masked rows hold anything.
        """
        raise NotImplementedError

    def _allowed(self, mask: Tensor, N: int, T: int, P: int) -> Tensor:
        """An attention mask as bool `[N, T, P]`."""
        if not self.config.how.gives_weights:
            raise UsageError(no_attention("an attention mask", self.config.method))
        if mask.shape not in ((T, P), (1, T, P), (N, T, P)):
            raise ShapeError(
                f"attention_mask has shape {list(mask.shape)}, expected {[T, P]} or {[N, T, P]}: "
                "text tokens, image tokens"
            )
        return mask.to(torch.bool).expand(N, T, P)


class LayeredFusion(PairFusion):
    """A fusion made of the layers that its method declares; the method's `forward` computes.

    Each layer is a submodule or a parameter under its own name, with torch's initial weights.

    Args:
        config: of a method whose layers are `linear`, `layer_norm` and `zero`.
    """

    def __init__(self, config: FusionSettings) -> None:
        super().__init__()
        self.config = FusionConfig.of(config)
        for layer in self.config.layers_of_method():
            self._add(layer)

    def _add(self, layer: Layer) -> None:
        (name, shape), *others = layer.shapes.items()
        if not others and shape == (1,):
            self.register_parameter(name, nn.Parameter(torch.zeros(1)))
            return
        name, _, last = name.rpartition(".")
        if last != "weight" or [key for key, _ in others] != [f"{name}.bias"]:
            raise TypeError(f"{list(layer.shapes)}: write a torch module and `build_module` for it")
        self.add_module(name, nn.Linear(*shape[::-1]) if len(shape) == 2 else nn.LayerNorm(shape))

    def linear(self, name: str) -> nn.Linear:
        """One of the linear layers."""
        layer = self.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        return layer

    def project(self, x: Tensor, y: Tensor, direction: Side) -> tuple[Tensor, Tensor]:
        """The query side x and the context side y through `text_proj` and `image_proj`."""
        text, image = self.linear("text_proj"), self.linear("image_proj")
        return (text(x), image(y)) if direction == "text" else (image(x), text(y))

    def mean(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """`[N, P, .]` to `[N, 1, .]`: the mean of the real tokens, zero if there is none.

        Args:
            tokens: those that are not real are zero.
            real: bool `[N, P]`; None if all are.
        """
        if real is None:
            return tokens.mean(dim=1, keepdim=True)
        count = real.sum(dim=1).clamp(min=1).to(tokens.dtype)  # [N]
        return tokens.sum(dim=1, keepdim=True) / count[:, None, None]

    def fuse(
        self, x: Tensor, y: Tensor, x_real: Tensor | None, y_real: Tensor | None, direction: Side
    ) -> Tensor:
        return self.config.how.forward(self, x, y, x_real, y_real, direction)


def _both(allowed: Tensor, real: Tensor | None) -> Tensor:
    """An attention mask `[N, T, P]` without the context tokens that are not real `[N, P]`."""
    return allowed if real is None else allowed & real.unsqueeze(1)


def _refuse_empty(x_real: Tensor | None, y_real: Tensor, query: Side, context: Side) -> None:
    """Raises:
    ShapeError: a query token has no context token to attend to; the first is named.
    """
    if y_real.dim() == 2:
        empty = ~y_real.any(dim=1)  # [N]
        if bool(empty.any()):
            sample = int(empty.nonzero()[0])
            raise ShapeError(f"sample {sample}: every {context} token is masked")
        return
    empty = ~y_real.any(dim=2)  # [N, T]
    if x_real is not None:
        empty = empty & x_real
    if bool(empty.any()):
        sample, token = empty.nonzero()[0].tolist()
        raise ShapeError(f"sample {sample}: {query} token {token} may attend to no {context} token")


def _masked(features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Features `[N, tokens, .]` with masked tokens zero, and the mask as bool `[N, tokens]`."""
    if mask is None:
        return features, None
    real = mask.reshape(features.shape[:2]).to(torch.bool)
    return features.masked_fill(~real.unsqueeze(-1), 0.0), real


def _check_shapes(config: FusionSettings, image: Tensor, text: Tensor) -> None:
    shapes = f"image {list(image.shape)} and text {list(text.shape)}"
    if (image.dim(), text.dim()) not in ((1, 2), (2, 2), (3, 3)):
        raise ShapeError(f"{shapes}: expected [P, Di] with [T, Dt], or [N, P, Di] with [N, T, Dt]")
    if image.shape[-1] != config.image_dim or text.shape[-1] != config.text_dim:
        raise ShapeError(
            f"{shapes}: expected widths Di = {config.image_dim} and Dt = {config.text_dim}"
        )
    if 0 in image.shape or 0 in text.shape:
        raise ShapeError(f"{shapes}: there is nothing to fuse")
    if image.dim() == 3 and image.shape[0] != text.shape[0]:
        raise ShapeError(f"{shapes}: the numbers of samples differ")
