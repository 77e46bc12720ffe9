"""Make image and text features of easy-VQA: coloured shapes, and questions about them.

    pip install easy-vqa pillow
    python docs/easy_vqa_features.py features                  # everything: 48,248 questions
    python docs/easy_vqa_features.py sample --pictures 300     # a sample with test pictures apart
    python docs/easy_vqa_features.py plain --keep-mean         # patches as they are

The pictures and questions are those of the package easy-vqa (MIT, Victor Zhou). Nothing is
downloaded. A picture of 64 x 64 pixels becomes 64 patches `[64, 16]`: for each patch of 8 x 8
the mean, spread and range of the three colours, the differences across and down, and the place
of the patch. The mean over the patches is subtracted, so that what a picture shows lies in
single patches and has to be looked for: a model of the mean of the patches sees nothing of it.
`--keep-mean` leaves the patches as they are. A question becomes one vector a word `[words, 32]`: a
random vector that follows from the word by a hash, and the word's place.

Written are `images.npy` `[pictures, 64, 16]`, `texts.npz` (the distinct questions), and
`pairs.csv` with the columns id, image, image_row, text, text_key, label, group and split.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

PATCH = 8  # pixels
WORD_WIDTH = 32


def patches(pixels: NDArray[np.uint8], keep_mean: bool = False) -> Floats:
    """Statistics of the patches of one picture.

    Args:
        pixels: `[64, 64, 3]`.
        keep_mean: do not subtract the mean over the patches.

    Returns:
        float32 `[64, 16]`.
    """
    x = pixels.astype(np.float32) / 255
    across = np.abs(np.diff(x, axis=1, append=x[:, -1:])).mean(axis=2)
    down = np.abs(np.diff(x, axis=0, append=x[-1:])).mean(axis=2)
    side = len(x) // PATCH
    cells = x.reshape(side, PATCH, side, PATCH, 3).transpose(0, 2, 1, 3, 4)
    cells = cells.reshape(side * side, PATCH * PATCH, 3)
    edges = [
        e.reshape(side, PATCH, side, PATCH).transpose(0, 2, 1, 3).reshape(side * side, -1)
        for e in (across, down)
    ]
    corner = (edges[0] * edges[1]).mean(axis=1)
    rows, columns = np.divmod(np.arange(side * side), side)
    parts = [
        cells.mean(axis=1),
        cells.std(axis=1),
        cells.max(axis=1) - cells.min(axis=1),
        np.stack([e.mean(axis=1) for e in edges], axis=1),
        np.stack([e.std(axis=1) for e in edges], axis=1),
        corner[:, None],
        np.stack([rows, columns], axis=1) / side,
    ]
    found = np.concatenate(parts, axis=1).astype(np.float64)
    if not keep_mean:
        found -= found.mean(axis=0)
    return found.astype(np.float32)


def words(question: str) -> Floats:
    """One vector a word, float32 `[words, 32]`; the same word has the same vector."""
    found = re.findall(r"[a-z]+", question.lower())
    vectors = []
    for place, word in enumerate(found):
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
        vector = np.random.default_rng(seed).standard_normal(WORD_WIDTH)
        vector[-1] = place / 8
        vectors.append(vector)
    return np.array(vectors, np.float32)


def additive_bound(rows: list[list[Any]]) -> str:
    """What models without interaction can reach on the test questions, whatever the features.

    A score of the text plus a score of the picture answers "what color is the shape?": the text
    lets only colours through, and the picture says which. Of "is there a red shape?" it can only
    know how often the answer to this question is yes.
    """
    answers: dict[str, Counter[str]] = {}
    for _, _, key, answer, _, split in rows:
        if split == "train":
            answers.setdefault(key, Counter())[answer] += 1
    test = [(key, answer) for _, _, key, answer, _, split in rows if split == "test"]
    by_text = [key in answers and answers[key].most_common(1)[0][0] == a for key, a in test]
    is_open = [answer not in ("yes", "no") for _, answer in test]
    both = sum(known or free for known, free in zip(by_text, is_open, strict=True))
    return (
        f"of {len(test):,} test questions {sum(is_open) / len(test):.3f} ask for shape or colour; "
        f"the most frequent answer to each text is right for {sum(by_text) / len(test):.3f}; a "
        f"perfect model without interaction for {both / len(test):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the features go")
    parser.add_argument("--pictures", type=int, default=0, help="only so many, 0: all")
    parser.add_argument("--questions", type=int, default=0, help="of a picture at most, 0: all")
    parser.add_argument("--train-questions", type=int, default=0, help="of the training part")
    parser.add_argument("--keep-mean", action="store_true", help="leave the patches as they are")
    options = parser.parse_args()
    try:
        import easy_vqa
        from PIL import Image
    except ImportError as error:
        sys.exit(f"{error}: pip install easy-vqa pillow")

    options.folder.mkdir(parents=True, exist_ok=True)
    pictures: list[Floats] = []
    texts: dict[str, str] = {}
    rows: list[list[Any]] = []
    for split in ("train", "test"):
        paths = getattr(easy_vqa, f"get_{split}_image_paths")()
        asked = zip(*getattr(easy_vqa, f"get_{split}_questions")(), strict=True)
        keep = sorted(paths)
        if options.pictures:
            share = options.pictures * (0.8 if split == "train" else 0.2)
            keep = keep[: round(share)]
        place = {number: len(pictures) + i for i, number in enumerate(keep)}
        for number in keep:
            with Image.open(paths[number]) as picture:
                pictures.append(patches(np.asarray(picture.convert("RGB")), options.keep_mean))
        counted: dict[int, int] = {}
        for question, answer, number in asked:
            counted[number] = counted.get(number, 0) + 1
            full = options.questions and counted[number] > options.questions
            if number not in place or full:
                continue
            key = texts.setdefault(question, f"q{len(texts):04d}")
            row = place[number]
            rows.append(
                [
                    f"{split}-{number}-{counted[number]}",
                    row,
                    key,
                    answer,
                    f"{split}-{number}",
                    split,
                ]
            )
    if options.train_questions:
        training = [row for row in rows if row[-1] == "train"]
        step = max(1, len(training) // options.train_questions)
        rows = training[::step][: options.train_questions] + [r for r in rows if r[-1] == "test"]
    np.save(options.folder / "images.npy", np.stack(pictures))
    np.savez(options.folder / "texts.npz", **{key: words(q) for q, key in texts.items()})
    with open(options.folder / "pairs.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "image", "image_row", "text", "text_key", "label", "group", "split"])
        for name, row, key, answer, group, split in rows:
            writer.writerow([name, "images.npy", row, "texts.npz", key, answer, group, split])
    print(f"{options.folder}: {len(rows):,} questions, {len(pictures):,} pictures")
    print(additive_bound(rows))


if __name__ == "__main__":
    main()
