"""The few array operations that fusion needs, for numpy and for torch.

`ArrayBackend` is what both have, so that the arithmetic is written once. What its operations
return is workspace: the next call with the same name overwrites it. New memory for every chunk
would cost more than the products that fill it.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fusecli.fusion.literals import Dtype, Engine

Array = Any  # numpy.ndarray or torch.Tensor, never both in one job


class ArrayBackend(Protocol):
    """The operations, on one device and in one type.

    Attributes:
        name: "numpy" or "torch".
    """

    name: Engine

    def workspace(self, name: str, *shape: int) -> Array:
        """Workspace of a shape; the contents are undefined."""

    def detach(self, name: str) -> None:
        """Leave workspace to the caller who has it: the next call gets other memory."""

    def empty(self, *shape: int) -> Array:
        """New memory, which is not workspace; the contents are undefined."""

    def load(self, array: NDArray[Any]) -> Array:
        """Bring an array to the device."""

    def unload(self, array: Array) -> NDArray[np.float32]:
        """Bring a result back, as float32."""

    def linear(self, name: str, rows: Array, weight: Array, bias: Array | None) -> Array:
        """`[R, in]` by `[out, in]` to `[R, out]`."""

    def per_head(self, name: str, rows: Array, weight: Array) -> Array:
        """`[R, H, a]` by `[H, a, b]` to `[R, H, b]`, head by head."""

    def batched(self, left: Array, right: Array, out: Array) -> Array:
        """`[n, a, b]` by `[n, b, c]` into `out` `[n, a, c]`."""

    def heads_to_scores(self, q: Array, k: Array) -> Array:
        """q `[n, T, H, d]`, k `[n, P, H, d]` to `[n, H, T, P]`."""

    def heads_to_context(self, a: Array, v: Array, out: Array) -> Array:
        """a `[n, H, T, P]`, v `[n, P, H, d]` into `out` `[n, T, H, d]`."""

    def softmax(self, scores: Array, axis: int, real: Array | None, null: bool) -> Array:
        """Softmax over one axis.

        Args:
            scores: may be overwritten.
            axis: of the tokens to choose from.
            real: bool, broadcast to `scores`: true for tokens that take part; None if all do.
            null: one more token takes part, whose score is 0.
        """

    def rearranged(self, name: str, array: Array, order: tuple[int, ...]) -> Array:
        """A contiguous copy with the axes in another order."""

    def permuted(self, array: Array, order: tuple[int, ...]) -> Array:
        """A view with the axes in another order."""

    def copied(self, array: Array) -> Array:
        """A copy that no later call overwrites."""

    def ones(self, *shape: int) -> Array:
        """New memory, all ones."""

    def attention(self, q: Array, k: Array, v: Array, real: Array | None) -> Array | None:
        """Softmax(q k') v in one kernel that never stores the weights.

        Args:
            q: `[n, T, H, d]`, scaled.
            k, v: `[n, P, H, d]`.
            real: bool `[n, P]` or `[n, T, P]`, or None if all tokens take part.

        Returns:
            `[n, T, H, d]`, or None where there is no such kernel or it is not usable for these
            numbers.
        """

    def repeated(self, name: str, rows: Array, times: int) -> Array:
        """`[n, D]` to `[n, times, D]`."""

    def layer_norm(self, rows: Array, weight: Array, bias: Array) -> Array:
        """Over the last axis, with eps 1e-5 as in torch."""


class NumpyArrays:
    """float32 on the CPU."""

    name: Engine = "numpy"

    def __init__(self) -> None:
        self._flat: dict[str, NDArray[np.float32]] = {}

    def workspace(self, name: str, *shape: int) -> Array:
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.size < size:
            flat = self._flat[name] = np.empty(size, np.float32)
        return flat[:size].reshape(shape)

    def detach(self, name: str) -> None:
        self._flat.pop(name, None)

    def empty(self, *shape: int) -> Array:
        return np.empty(shape, np.float32)

    def load(self, array: NDArray[Any]) -> Array:
        return array

    def unload(self, array: Array) -> NDArray[np.float32]:
        result: NDArray[np.float32] = array
        return result

    def linear(self, name: str, rows: Array, weight: Array, bias: Array | None) -> Array:
        out = self.workspace(name, rows.shape[0], weight.shape[0])
        np.matmul(rows, weight.T, out=out)
        if bias is not None:
            out += bias
        return out

    def per_head(self, name: str, rows: Array, weight: Array) -> Array:
        out = self.workspace(name, rows.shape[0], rows.shape[1], weight.shape[2])
        np.matmul(rows.swapaxes(0, 1), weight, out=out.swapaxes(0, 1))
        return out

    def batched(self, left: Array, right: Array, out: Array) -> Array:
        return np.matmul(left, right, out=out)

    def heads_to_scores(self, q: Array, k: Array) -> Array:
        (n, T, H, _), P = q.shape, k.shape[1]
        out = self.workspace("scores", n, H, T, P)
        return np.matmul(q.swapaxes(1, 2), k.transpose(0, 2, 3, 1), out=out)

    def heads_to_context(self, a: Array, v: Array, out: Array) -> Array:
        np.matmul(a, v.swapaxes(1, 2), out=out.swapaxes(1, 2))
        return out

    def softmax(self, scores: Array, axis: int, real: Array | None, null: bool) -> Array:
        if real is not None:
            np.copyto(scores, -np.inf, where=~real)
        top = scores.max(axis=axis, keepdims=True)
        if null:
            np.maximum(top, 0, out=top)
        scores -= top
        np.exp(scores, out=scores)
        total = scores.sum(axis=axis, keepdims=True)
        if null:  # the null token's own score is 0
            total += np.exp(-top)
        scores /= total
        return scores

    def rearranged(self, name: str, array: Array, order: tuple[int, ...]) -> Array:
        view = array.transpose(order)
        out = self.workspace(name, *view.shape)
        np.copyto(out, view)
        return out

    def permuted(self, array: Array, order: tuple[int, ...]) -> Array:
        return array.transpose(order)

    def copied(self, array: Array) -> Array:
        return array.copy()

    def ones(self, *shape: int) -> Array:
        return np.ones(shape, np.float32)

    def attention(self, q: Array, k: Array, v: Array, real: Array | None) -> Array | None:
        return None  # numpy has no such kernel

    def repeated(self, name: str, rows: Array, times: int) -> Array:
        out = self.workspace(name, rows.shape[0], times, rows.shape[1])
        np.copyto(out, rows[:, None, :])
        return out

    def layer_norm(self, rows: Array, weight: Array, bias: Array) -> Array:
        centred = rows - rows.mean(axis=-1, keepdims=True)
        variance = np.mean(centred * centred, axis=-1, keepdims=True)
        return centred / np.sqrt(variance + 1e-5) * weight + bias


class TorchArrays:
    """Any device and type that torch has.

    Args:
        device: as torch names it.
        dtype: "float32", "bfloat16" or "float16".
    """

    name: Engine = "torch"

    def __init__(self, device: str, dtype: Dtype) -> None:
        import torch

        self._torch = torch
        self._device = torch.device(device)
        self._dtype = getattr(torch, dtype)
        self._narrow = dtype != "float32"
        self._flat: dict[str, Any] = {}

    def workspace(self, name: str, *shape: int) -> Array:
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size:
            flat = self._torch.empty(size, dtype=self._dtype, device=self._device)
            self._flat[name] = flat
        return flat[:size].view(shape)

    def detach(self, name: str) -> None:
        self._flat.pop(name, None)

    def empty(self, *shape: int) -> Array:
        return self._torch.empty(shape, dtype=self._dtype, device=self._device)

    def load(self, array: NDArray[Any]) -> Array:
        kind = self._torch.bool if array.dtype == np.bool_ else self._dtype
        if not array.flags.writeable:  # torch warns; nothing here writes to it
            array = array.copy()
        return self._torch.from_numpy(array).to(self._device, kind)

    def unload(self, array: Array) -> NDArray[np.float32]:
        result: NDArray[np.float32] = array.float().cpu().numpy()
        return result

    def linear(self, name: str, rows: Array, weight: Array, bias: Array | None) -> Array:
        out = self.workspace(name, rows.shape[0], weight.shape[0])
        if bias is None:
            return self._torch.mm(rows, weight.t(), out=out)
        return self._torch.addmm(bias, rows, weight.t(), out=out)

    def per_head(self, name: str, rows: Array, weight: Array) -> Array:
        out = self.workspace(name, rows.shape[0], rows.shape[1], weight.shape[2])
        if self._narrow or self._device.type != "cpu":
            # Only the CPU's float32 products write into rows that lie apart.
            return out.copy_(self._torch.bmm(rows.transpose(0, 1), weight).transpose(0, 1))
        for head in range(weight.shape[0]):
            self._torch.mm(rows[:, head], weight[head], out=out[:, head])
        return out

    def batched(self, left: Array, right: Array, out: Array) -> Array:
        return self._torch.bmm(left, right, out=out)

    def heads_to_scores(self, q: Array, k: Array) -> Array:
        # float16 ends at 65504, and the product of two heads can go beyond it.
        q, k = (q.float(), k.float()) if self._narrow else (q, k)
        return self._torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1))

    def heads_to_context(self, a: Array, v: Array, out: Array) -> Array:
        return out.copy_(self._torch.matmul(a, v.transpose(1, 2)).transpose(1, 2))

    def softmax(self, scores: Array, axis: int, real: Array | None, null: bool) -> Array:
        torch = self._torch
        if real is not None:
            scores = scores.masked_fill(~real, -math.inf)
        if not null:
            return torch.softmax(scores, axis, dtype=torch.float32).to(self._dtype)
        scores = scores.float()
        top = scores.amax(axis, keepdim=True).clamp(min=0)
        e = torch.exp(scores - top)
        return (e / (e.sum(axis, keepdim=True) + torch.exp(-top))).to(self._dtype)

    def rearranged(self, name: str, array: Array, order: tuple[int, ...]) -> Array:
        return array.permute(order).contiguous()

    def permuted(self, array: Array, order: tuple[int, ...]) -> Array:
        return array.permute(order)

    def copied(self, array: Array) -> Array:
        return array.clone()

    def ones(self, *shape: int) -> Array:
        return self._torch.ones(shape, device=self._device)

    def attention(self, q: Array, k: Array, v: Array, real: Array | None) -> Array | None:
        # The kernel gives a row of zeros for a query that is not finite, and so hides it. A sum
        # shows whether there is one; if the sum itself overflows, the kernel is not used either.
        total = q.sum(dtype=self._torch.float32) + k.sum(dtype=self._torch.float32)
        if not bool(self._torch.isfinite(total)):
            return None
        mask = None
        if real is not None:
            mask = real.reshape(len(real), 1, -1, real.shape[-1])  # [n, 1, T or 1, P]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        kernel = self._torch.nn.functional.scaled_dot_product_attention
        # The scale is in the query's weights already.
        return kernel(q, k, v, attn_mask=mask, scale=1.0).transpose(1, 2)

    def repeated(self, name: str, rows: Array, times: int) -> Array:
        out = self.workspace(name, rows.shape[0], times, rows.shape[1])
        return out.copy_(rows[:, None, :].expand(out.shape))

    def layer_norm(self, rows: Array, weight: Array, bias: Array) -> Array:
        norm = self._torch.nn.functional.layer_norm
        return norm(rows, (rows.shape[-1],), weight, bias)
