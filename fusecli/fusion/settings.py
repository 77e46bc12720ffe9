"""The sizes and switches of one fusion as plain data, and the sizes of one job.

`FusionConfig` in `config.py` is the same data, checked. A fusion method reads only this module,
so that it needs to know nothing of the other methods.
"""

from __future__ import annotations

from fusecli.fusion.literals import MethodName, Side
from fusecli.records import record


@record
class Sizes:
    """What the cost of a job depends on: one letter each, and the switches that add products.

    Attributes:
        N: pairs in the job.
        T, P: text and image tokens of a pair.
        Dt, Di: width of a text and of an image feature.
        D, H: width of the module, and its heads.
        null_token, residual: as in `FusionSettings`.
    """

    N: int
    T: int
    P: int
    Dt: int
    Di: int
    D: int
    H: int
    null_token: bool = False
    residual: bool = False


@record
class FusionSettings:
    """Sizes and switches of one fusion.

    Attributes:
        embed_dim: D, the width of the module and of every fused vector.
        num_heads: H; divides D, and each head is d = D / H wide.
        image_dim: Di, the width of an image feature; 0 means D.
        text_dim: Dt, the width of a text feature; 0 means D.
        residual: add the projected query side to what attention returns.
        norm: LayerNorm over the result (after the residual).
        null_token: one extra all-zero key and value (PyTorch's `add_zero_attn`).
        method: how text and image are fused, one of `fusecli.fusion.methods.METHODS`.
        gate: add tanh(gate) times what attention returns to the query side itself (Flamingo,
            arXiv:2204.14198, figure 4); the gate is a parameter that starts at 0.
        projected: concat and sum project to D. Without, concat is Dt + Di wide and sum takes
            sides of one width, and neither has weights.
        alpha: the text's share of a sum, from 0 to 1.
        layers: of a transformer.
        ffn_dim: inner width of a transformer's feed-forward; 0 means 4 D.
        rank: R, the width in which a bilinear fusion multiplies; 0 means D.
        context_dim: the width to which attention projects the image before its keys and values
            (torch's kdim and vdim), where it is not D; 0 means D. Only weights files set it.
    """

    embed_dim: int
    num_heads: int = 8
    image_dim: int = 0
    text_dim: int = 0
    residual: bool = False
    norm: bool = False
    null_token: bool = False
    method: MethodName = "attention"
    gate: bool = False
    projected: bool = False
    alpha: float = 0.5
    layers: int = 2
    ffn_dim: int = 0
    rank: int = 0
    context_dim: int = 0

    @property
    def head_dim(self) -> int:
        """d = D / H."""
        return self.embed_dim // self.num_heads

    def side_dim(self, side: Side) -> int:
        """Width of one side's features: Dt or Di."""
        return self.text_dim if side == "text" else self.image_dim

    def sizes(self, N: int, T: int, P: int) -> Sizes:
        """The sizes of a job of N pairs with T text and P image tokens each."""
        widths = self.text_dim, self.image_dim, self.embed_dim
        return Sizes(N, T, P, *widths, self.num_heads, self.null_token, self.residual)
