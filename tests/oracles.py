"""The ways to fuse, written with torch's own layers for one pair, as the oracle of the tests.

Nothing of fusecli is used in here: padding is cut off before anything is computed, and pairs are
taken one by one, so that masks and independence of samples are held to as well.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


def random_weights(shapes, seed=0):
    """Weights like trained ones: attention far from uniform, no bias zero, no norm the identity."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        weights[name] = (drawn * (1.5 / shape[-1] ** 0.5 if len(shape) > 1 else 0.7)).numpy()
    return weights


def each_pair(one, image, text, image_mask=None, text_mask=None, direction="text"):
    """Fuse a stack with a function for one pair of what is not padding; padding is zero.

    Args:
        one: takes the asking and the answering tokens `[T, .]`, gives `[T, D]`; float64.
        image, text, image_mask, text_mask: as for `Fusion.fuse`; the image may serve all.
        direction: the side that asks.
    """
    n = len(text)
    image = np.broadcast_to(image, (n, *image.shape[1:]))
    sides = {}
    for side, array, mask in (("image", image, image_mask), ("text", text, text_mask)):
        whole = np.ones(array.shape[:2], bool)
        sides[side] = (array, whole if mask is None else np.broadcast_to(mask, whole.shape))
    (x, x_real) = sides[direction]
    (y, y_real) = sides["image" if direction == "text" else "text"]
    rows = []
    for k in range(n):
        asking = torch.from_numpy(x[k][x_real[k]]).double()
        answering = torch.from_numpy(y[k][y_real[k]]).double()
        with torch.inference_mode():
            made = one(asking, answering).numpy() if len(asking) else None
        width = 1 if made is None else made.shape[1]
        row = np.zeros((x.shape[1], width))
        if made is not None:
            row[x_real[k]] = made
        rows.append(row)
    widest = max(row.shape[1] for row in rows)
    return np.stack([np.broadcast_to(row, (len(row), widest)) for row in rows])


def _linear(weights, name):
    weight = torch.from_numpy(weights[f"{name}.weight"]).double()
    layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
    layer.load_state_dict({"weight": weight, "bias": torch.from_numpy(weights[f"{name}.bias"])})
    return layer


def _under(weights, prefix):
    return {
        name.removeprefix(prefix): torch.from_numpy(array)
        for name, array in weights.items()
        if name.startswith(prefix)
    }


def _projections(weights, direction):
    names = ("text_proj", "image_proj")
    return [_linear(weights, name) for name in (names if direction == "text" else names[::-1])]


def attention(weights, heads, direction, *, gate=False, residual=False, norm=False):
    """`nn.MultiheadAttention` behind two `nn.Linear`; an image without tokens gives its bias."""
    ask, answer = _projections(weights, direction)
    state = _under(weights, "attention.")
    D = state["out_proj.bias"].shape[0]
    layer = nn.MultiheadAttention(D, heads, batch_first=True).double()
    layer.load_state_dict(state)

    def one(x, y):
        query = ask(x)
        if len(y):
            fused = layer(query[None], answer(y)[None], answer(y)[None])[0][0]
        else:
            fused = layer.out_proj.bias.expand(len(x), -1)
        if gate:
            fused = x + torch.tanh(torch.from_numpy(weights["gate"]).double()) * fused
        if residual:
            fused = fused + query
        if norm:
            scale, shift = (torch.from_numpy(weights[f"norm.{k}"]) for k in ("weight", "bias"))
            fused = F.layer_norm(fused, (D,), scale.double(), shift.double())
        return fused

    return one


def transformer(weights, heads, layers, direction):
    """`nn.TransformerDecoder` of plain layers, for one pair without padding and without masks."""
    ask, answer = _projections(weights, direction)
    state = _under(weights, "decoder.")
    D, ffn = state["norm.bias"].shape[0], state["layers.0.linear1.bias"].shape[0]
    layer = nn.TransformerDecoderLayer(
        D, heads, ffn, dropout=0.0, batch_first=True, norm_first=True
    )
    decoder = nn.TransformerDecoder(layer, layers, nn.LayerNorm(D)).double().eval()
    decoder.load_state_dict(state)

    def one(x, y):
        if len(y):
            return decoder(ask(x)[None], answer(y)[None])[0]
        # No image: what cross-attention adds is its output bias.
        h = ask(x)
        for layer in decoder.layers:
            z = layer.norm1(h)[None]
            h = h + layer.self_attn(z, z, z)[0][0]
            h = h + layer.multihead_attn.out_proj.bias
            h = h + layer.linear2(torch.relu(layer.linear1(layer.norm3(h))))
        return decoder.norm(h)

    return one


def concat(weights, direction):
    """[text ; image], the side that answers as its mean; through one `nn.Linear` if there is."""

    def one(x, y):
        mean = y.mean(0, keepdim=True) if len(y) else torch.zeros(1, y.shape[1]).double()
        both = (x, mean.expand(len(x), -1))
        rows = torch.cat(both if direction == "text" else both[::-1], dim=1)
        return _linear(weights, "projection")(rows) if weights else rows

    return one


def weighted_sum(weights, alpha, direction):
    """alpha text + (1 - alpha) image, the side that answers as its mean, maybe projected."""
    own = alpha if direction == "text" else 1 - alpha

    def one(x, y):
        mean = y.mean(0, keepdim=True) if len(y) else torch.zeros(1, y.shape[1]).double()
        if weights:
            ask, answer = _projections(weights, direction)
            x, mean = ask(x), answer(mean)
        return own * x + (1 - own) * mean

    return one


def bilinear(weights, direction):
    """`out_proj(text_proj(text) * image_proj(mean of the image))` of plain `nn.Linear`s."""
    query, context = _projections(weights, direction)

    def one(x, y):
        mean = y.mean(0, keepdim=True) if len(y) else torch.zeros(1, y.shape[1]).double()
        return _linear(weights, "out_proj")(query(x) * context(mean))

    return one


def oracle(config, weights, direction="text"):
    """The function for one pair that a config describes."""
    c = config
    if c.method == "attention":
        switches = {"gate": c.gate, "residual": c.residual, "norm": c.norm}
        return attention(weights, c.num_heads, direction, **switches)
    if c.method == "transformer":
        return transformer(weights, c.num_heads, c.layers, direction)
    if c.method == "concat":
        return concat(weights, direction)
    if c.method == "bilinear":
        return bilinear(weights, direction)
    assert c.method == "sum"
    return weighted_sum(weights, c.alpha, direction)
