"""The smallest training there is, on pairs of random numbers."""

from __future__ import annotations

N = 24
TRAIN = ("train", "images", "texts", "--labels", "labels.csv", "-o", "run", "--method", "bilinear",
         "--epochs", "1", "--seeds", "1", "--dim", "8", "--quiet")  # fmt: skip
