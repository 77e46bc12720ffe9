"""Attention with a mask computed token by token, as the oracle of the tests."""

import numpy as np
import torch
from torch import nn

from tests.oracles import attention


def decoder(config, weights):
    state = {
        name.removeprefix("decoder."): torch.from_numpy(array)
        for name, array in weights.items()
        if name.startswith("decoder.")
    }
    layer = nn.TransformerDecoderLayer(
        config.embed_dim,
        config.num_heads,
        config.ffn_dim,
        dropout=0.0,
        batch_first=True,
        norm_first=True,
    )
    made = nn.TransformerDecoder(layer, config.layers, nn.LayerNorm(config.embed_dim)).double()
    made.load_state_dict(state)
    return made.eval()


def projected(weights, side, rows):
    rows = np.asarray(rows, np.float64)
    made = rows @ weights[f"{side}_proj.weight"].T + weights[f"{side}_proj.bias"]
    return torch.from_numpy(made)


def token_by_token(config, weights, x, y, allowed, direction):
    """One pair; every query token sees a context that holds only what it may attend to.

    Args:
        x, y: the query and the context side, `[T, .]` and `[P, .]`.
        allowed: bool `[T, P]`.
    """
    x, y = torch.from_numpy(x).double(), torch.from_numpy(y).double()
    with torch.inference_mode():
        if config.method == "attention":
            one = attention(
                weights,
                config.num_heads,
                direction,
                gate=config.gate,
                residual=config.residual,
                norm=config.norm,
            )
            if config.null_token:
                return with_null_token(config, weights, x, y, allowed, direction)
            return torch.cat([one(x[t : t + 1], y[allowed[t]]) for t in range(len(x))]).numpy()
        sides = ("text", "image") if direction == "text" else ("image", "text")
        made = decoder(config, weights)
        h, memory = (projected(weights, side, r) for side, r in zip(sides, (x, y), strict=True))
        for layer in made.layers:
            z = layer.norm1(h)[None]
            h = h + layer.self_attn(z, z, z)[0][0]
            z, seen = layer.norm2(h), []
            for t, row in enumerate(allowed):
                own = layer.multihead_attn.out_proj.bias[None]
                if row.any():
                    tokens = memory[row][None]
                    own = layer.multihead_attn(z[None, t : t + 1], tokens, tokens)[0][0]
                seen.append(own)
            h = h + torch.cat(seen)
            h = h + layer.linear2(torch.relu(layer.linear1(layer.norm3(h))))
        return made.norm(h).numpy()


def with_null_token(config, weights, x, y, allowed, direction):
    """The same by hand, for attention with a null token."""
    sides = ("text", "image") if direction == "text" else ("image", "text")
    x, y = (projected(weights, side, r).numpy() for side, r in zip(sides, (x, y), strict=True))
    query, key, value = np.split(weights["attention.in_proj_weight"].astype(np.float64), 3)
    bq, bk, bv = np.split(weights["attention.in_proj_bias"], 3)
    d, rows = config.head_dim, []
    for t, row in enumerate(allowed):
        context = []
        for h in range(config.num_heads):
            part = slice(h * d, (h + 1) * d)
            q = x[t] @ query[part].T + bq[part]
            k, v = y[row] @ key[part].T + bk[part], y[row] @ value[part].T + bv[part]
            e = np.exp(k @ q / np.sqrt(d))
            context.append(e @ v / (e.sum() + 1))
        rows.append(np.concatenate(context))
    return (
        np.array(rows) @ weights["attention.out_proj.weight"].T + weights["attention.out_proj.bias"]
    )


def draw(n, T, P, seed=0):
    """A mask `[n, T, P]` with rows and columns that allow nothing."""
    allowed = np.random.default_rng(seed).random((n, T, P)) < 0.5
    allowed[0, 0] = False
    allowed[-1, :, -1] = False
    return allowed


def expected_of(config, weights, image, text, allowed, direction):
    n = max(len(image), len(text))
    rows = []
    for k in range(n):
        i, t = image[min(k, len(image) - 1)], text[min(k, len(text) - 1)]
        x, y, own = (t, i, allowed[k]) if direction == "text" else (i, t, allowed[k].T)
        rows.append(token_by_token(config, weights, x, y, own, direction))
    return np.stack(rows)
