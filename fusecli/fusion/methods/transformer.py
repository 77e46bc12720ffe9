"""The transformer at work: the torch module of `module.py`, chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from fusecli.fusion.backend.device import resolve_device
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.methods.attention.method import WeightsOut
from fusecli.fusion.methods.attention.plan import Plan, Sizes, samples_within


class DecoderFusion:
    """A `TransformerFusion` in inference, on any device and in any type that torch has.

    Several threads may call `fuse`; they take turns, since torch uses all cores for one call.

    Args:
        config: of method transformer.
        weights: all its parameters.
        direction: the side that asks.
        device: auto (the best there is), cpu, cuda, cuda:i or mps.
        dtype: float32, bfloat16 or float16.

    Raises:
        DeviceError: the device is not there.
    """

    plan: Plan | None = None
    engine = "torch"
    workers = 2  # one computes while another reads

    def __init__(
        self,
        config: FusionConfig,
        weights: Mapping[str, NDArray[np.float32]],
        direction: str,
        device: str,
        dtype: str,
    ) -> None:
        import torch

        from fusecli.fusion.torch_modules import TransformerFusion

        self.config, self.direction = config, direction
        self.device, self.threads = resolve_device(device), torch.get_num_threads()
        self._dtype = getattr(torch, dtype)
        with torch.device("meta"):  # the initial weights would be drawn only to be replaced
            module = TransformerFusion(config)
        state = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
        module.load_state_dict(state, assign=True)
        self._module = module.to(self.device, self._dtype).eval()
        self._turn = Lock()

    def in_parallel(self, workers: int) -> AbstractContextManager[object]:
        return nullcontext()

    def chunk_samples(self, sizes: Sizes, max_memory: int | None) -> int:
        s, c = sizes, self.config
        T, P = (s.T, s.P) if self.direction == "text" else (s.P, s.T)
        floats = 2 * (s.T * s.Dt + s.P * s.Di) + 3 * P * c.embed_dim
        floats += T * (8 * c.embed_dim + 2 * c.ffn_dim) + 2 * c.num_heads * T * (T + P)
        return samples_within(4 * floats, min(T, P), s.N, max_memory, self.workers)

    def fuse(
        self,
        image: NDArray[np.float32],
        text: NDArray[np.float32],
        image_mask: NDArray[np.bool_] | None = None,
        text_mask: NDArray[np.bool_] | None = None,
        weights_out: WeightsOut | None = None,
    ) -> NDArray[np.float32]:
        import torch

        n = len(text)

        def placed(array: NDArray[np.float32]) -> torch.Tensor:
            whole = np.broadcast_to(array, (n, *array.shape[1:]))
            if not whole.flags.writeable:  # torch warns, though nothing here writes to it
                whole = whole.copy()
            return torch.from_numpy(whole).to(self.device, self._dtype)

        def mask_of(mask: NDArray[np.bool_] | None) -> torch.Tensor | None:
            if mask is None or mask.all():
                return None
            whole = np.broadcast_to(mask, (n, mask.shape[1])).copy()
            return torch.from_numpy(whole).to(self.device)

        with self._turn, torch.inference_mode():
            fused = self._module(
                placed(image),
                placed(text),
                image_mask=mask_of(image_mask),
                text_mask=mask_of(text_mask),
                allow_empty_image=True,
                direction=self.direction,
            )
            made: NDArray[np.float32] = fused.float().cpu().numpy()
        return made
