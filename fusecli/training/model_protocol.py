"""What evaluation asks of examples and of a trained model. No array library but numpy."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class PairTable(Protocol):
    """The features of n pairs, as evaluation sees them.

    Attributes:
        n: how many pairs.
        ids: of the pairs, in their order.
        image_key, text_key: one a pair, equal where the content of what is read is equal (a hash
            of it, or the row of a stack).
        text_mask: bool [n, Tmax], true where a text token is real.
    """

    @property
    def n(self) -> int: ...
    @property
    def ids(self) -> tuple[str, ...]: ...
    @property
    def image_key(self) -> tuple[str, ...]: ...
    @property
    def text_key(self) -> tuple[str, ...]: ...
    @property
    def text_mask(self) -> NDArray[np.bool_]: ...


class Model(Protocol):
    """A trained model of any kind: the fusion and every baseline.

    Logits are raw scores: two for a binary `classify`, one for `regress` (in the unit of the
    labels) and for `match` (above 0: belongs together), C otherwise; no temperature is applied.

    Attributes:
        name: "majority", "text only", "image only", "additive", "concat + MLP" or "fusion".
    """

    @property
    def name(self) -> str: ...

    def logits(
        self, rows: NDArray[np.int64], image_rows: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Logits of pairs.

        Args:
            rows: int64 [m], the pairs whose texts are read.
            image_rows: int64 [m], the pairs whose images stand beside them; None: their own.

        Returns:
            float32 [m, C], for `tag` [m, Tmax, C].
        """
        ...

    def cross_logits(
        self, text_rows: NDArray[np.int64], image_rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Logits of every text with every image.

        Returns:
            float32 [a, b, C], for `tag` [a, b, Tmax, C].
        """
        ...
