"""A method for the tests: text plus the element-wise maximum of the projected image tokens.

It is in no list of fusecli. `tests/fusion/test_toy_method.py` adds its name to `METHODS`, and
everything else has to follow from what stands here.
"""

from __future__ import annotations

from fusecli.errors import UsageError
from fusecli.fusion.layers import linear
from fusecli.fusion.method import Method, Stage, Way
from fusecli.fusion.methods.pooled import PooledFusion
from fusecli.fusion.pooling import pool_tokens


class Max(Method):
    def check(self, config):
        if config.text_dim != config.embed_dim:
            raise UsageError(f"max adds to the text, which is {config.text_dim} wide")

    def check_sides(self, config, sides, weights):
        if "image" in sides:
            raise UsageError("max fuses into the text only")

    def layers(self, config):
        return [linear("image_proj", config.image_dim, config.embed_dim)]

    def multiply_adds(self, config, T, P):
        return P * config.image_dim * config.embed_dim

    def stages(self, N, query, context, config, plan):
        shape = (N, context.tokens, config.embed_dim)
        yield Stage(f"projected {context.name}", f"N, {context.letter}, D", shape, True)

    def build(self, config, load, sizes, computing):
        return MaxFusion(config, load, list(self.layers(config)[0].shapes), computing)

    def forward(self, module, x, y, x_real, y_real, direction):
        tokens = module.linear("image_proj")(y)
        if y_real is not None:
            tokens = tokens.masked_fill(~y_real.unsqueeze(-1), float("-inf"))
        return x + tokens.amax(dim=1, keepdim=True)

    def training_fields(self, given, width, heads, text_dim):
        return {"embed_dim": text_dim}


class MaxFusion(PooledFusion):
    def place(self, weights):
        self._weight, self._bias = weights["image_proj.weight"], weights["image_proj.bias"]

    def context(self, y, mask):
        return pool_tokens(y @ self._weight.T + self._bias, mask, "max")

    def combine(self, x, context, n):
        return x + context[:, None]


METHOD = Max("max", engines=("numpy",), ways=(Way("largest", "unchanged"),))
