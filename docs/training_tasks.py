"""Train with the defaults on tasks whose truth is known, and compare with what can be reached.

    python docs/training_tasks.py                             # every task, 300 pairs
    python docs/training_tasks.py --pairs 1000 5000 --tasks product additive
    python docs/training_tasks.py --tasks additive noise --draws 20   # how often a verdict is wrong

Nothing is tuned here: the defaults of `fusecli train` are run on features that look like those of
real encoders. A side has a few hidden values, mixed into many correlated channels of very
different size, with some channels ten times as large as the others and a mean that is far from
zero. `pooled` features are one vector a side, 512 wide (as CLIP has them); `patches` are 16 patches
768 wide and 3 to 8 words 768 wide (as ViT and BERT have them).

For each task the table has the metric on 2,000 fresh pairs (AUC for two classes, accuracy for
more, R2 for numbers), and the metric of the rule that made the labels. Verdicts are counted on
test parts of the size that `train` takes: "interaction" is the share of them that say that
interaction adds something. "missed" counts their intervals, of the fusion minus text only and of
the fusion minus additive, that leave out the difference on all 2,000 pairs: about 5 of 100 should.
The last line has the sums.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fusecli.pairs.pair import PairOptions
from fusecli.training.bootstrap import Interval, headline
from fusecli.training.examples import Examples, load_examples
from fusecli.training.fit import fit
from fusecli.training.fit_progress import Quiet
from fusecli.training.fitted import Fitted
from fusecli.training.flat import Flat, flatten
from fusecli.training.options import LabelOptions, TrainOptions
from fusecli.training.results import ADDITIVE, FUSION, TEXT, Measured, compare
from fusecli.training.score_part import Part, calibration_of
from fusecli.training.split import Split, default_share
from fusecli.training.targets import IGNORED, Targets

Floats = NDArray[np.float64]
Generator = np.random.Generator

TEST = 2000  # fresh pairs
HIDDEN = 24  # values of a side; the first ones decide, the others only vary
PATCHES = 16
LINES = ("text only", "image only", "additive", "concat + MLP", "fusion")


@dataclass(frozen=True)
class Pair:
    """One pair as `load_examples` reads it."""

    image: NDArray[np.float32]
    text: NDArray[np.float32]
    image_mask: None = None
    text_mask: None = None


@dataclass(frozen=True)
class Pairs:
    """A source of pairs that lie in memory."""

    pairs: list[Pair]

    @property
    def ids(self) -> list[str]:
        return [str(number) for number in range(len(self.pairs))]

    def read(self, row: int) -> Pair:
        return self.pairs[row]


@dataclass(frozen=True)
class Task:
    """Pairs of a task.

    Attributes:
        targets: the labels.
        rule: logits of the rule that made the labels, [n, C] or, for `tag`, [n, T, C]; None:
            nothing can be learnt.
    """

    examples: Examples
    targets: Targets
    rule: Floats | None


class Encoder:
    """Turns hidden values into features that look like those of a frozen encoder."""

    def __init__(self, width: int, rng: Generator) -> None:
        strength = np.arange(1, HIDDEN + 1) ** -0.5  # the first ones are the strongest
        mixing = rng.standard_normal((HIDDEN, width)) * strength[:, None]
        size = np.exp(0.5 * rng.standard_normal(width))
        size[rng.choice(width, 4, replace=False)] *= 10
        self.mixing, self.size = mixing * size / np.linalg.norm(strength), size
        self.mean = 3 * size * rng.standard_normal(width)

    def __call__(self, hidden: Floats, rng: Generator) -> NDArray[np.float32]:
        """[..., HIDDEN] to [..., width]."""
        noise = 0.5 * self.size * rng.standard_normal((*hidden.shape[:-1], len(self.size)))
        return (hidden @ self.mixing + noise + self.mean).astype(np.float32)


@dataclass(frozen=True)
class Layout:
    """How many tokens, and how wide."""

    image_width: int
    text_width: int
    patches: int
    words: tuple[int, int]


LAYOUTS = {"pooled": Layout(512, 512, 1, (1, 1)), "patches": Layout(768, 768, PATCHES, (3, 8))}


class Sides:
    """Hidden values of both sides and the features made of them."""

    def __init__(self, n: int, layout: Layout, rng: Generator) -> None:
        self.n, self.layout, self.rng = n, layout, rng
        self.lengths = rng.integers(layout.words[0], layout.words[1] + 1, n)
        self.text = rng.standard_normal((n, HIDDEN))
        self.image = rng.standard_normal((n, HIDDEN))
        self.words = 0.7 * rng.standard_normal((n, layout.words[1], HIDDEN))
        self.patches = 0.7 * rng.standard_normal((n, layout.patches, HIDDEN))

    def examples(self) -> Examples:
        """Each token has the values of its pair and values of its own."""
        text, image = (
            Encoder(w, self.rng) for w in (self.layout.text_width, self.layout.image_width)
        )
        pairs = [
            Pair(
                image(self.image[i] + self.patches[i], self.rng),
                text(self.text[i] + self.words[i, : self.lengths[i]], self.rng),
            )
            for i in range(self.n)
        ]
        return load_examples(Pairs(pairs), 4 << 30)


def _two_classes(score: Floats, rng: Generator, certainty: float = 3.0) -> tuple[Targets, Floats]:
    """Labels that are drawn with the probability that a score stands for."""
    logit = certainty * score
    labels = rng.random(len(score)) < 1 / (1 + np.exp(-logit))
    rule = np.stack([np.zeros(len(score)), logit], axis=1)
    return Targets("classify", ("no", "yes"), labels.astype(np.int64)), rule


def _drawn_class(logits: Floats, rng: Generator) -> NDArray[np.int64]:
    gumbel = rng.gumbel(size=logits.shape)
    chosen: NDArray[np.int64] = (logits + gumbel).argmax(axis=-1)
    return chosen


def product(sides: Sides) -> tuple[Targets, Floats]:
    return _two_classes(2 * sides.text[:, 0] * sides.image[:, 0], sides.rng)


def additive(sides: Sides) -> tuple[Targets, Floats]:
    return _two_classes(sides.text[:, 0] + sides.image[:, 0], sides.rng)


def curved(sides: Sides) -> tuple[Targets, Floats]:
    """Additive, but not linear in either side."""
    a, b = np.abs(sides.text[:, 0]), np.abs(sides.image[:, 0])
    return _two_classes(2 * (a + b - 1.6), sides.rng)


def both(sides: Sides) -> tuple[Targets, Floats]:
    """A product of a hidden value of each side, and a little of each by itself."""
    a, b = sides.text[:, 0], sides.image[:, 0]
    return _two_classes(1.5 * a * b + 0.7 * a + 0.4 * b, sides.rng)


def text_only(sides: Sides) -> tuple[Targets, Floats]:
    return _two_classes(1.5 * sides.text[:, 0], sides.rng)


def image_only(sides: Sides) -> tuple[Targets, Floats]:
    return _two_classes(1.5 * sides.image[:, 0], sides.rng)


def noise(sides: Sides) -> tuple[Targets, None]:
    return _two_classes(np.zeros(sides.n), sides.rng)[0], None


def pointer(sides: Sides) -> tuple[Targets, Floats]:
    """One word names a kind of patch; the sign of a value of that patch decides."""
    kinds = 6
    rng, rows = sides.rng, np.arange(sides.n)
    key, shown = 2 * rng.standard_normal((2, kinds, HIDDEN))
    places = rng.permuted(np.tile(np.arange(PATCHES), (sides.n, 1)), axis=1)[:, :kinds]
    values = rng.standard_normal((sides.n, kinds))
    for kind in range(kinds):
        sides.patches[rows, places[:, kind]] += shown[kind]
        sides.patches[rows, places[:, kind], 0] = 2 * values[:, kind]
    sides.image[:, 0] = 0
    asked = rng.integers(kinds, size=sides.n)
    sides.words[rows, rng.integers(sides.lengths)] += key[asked]
    return _two_classes(2 * values[rows, asked], rng)


def classes(sides: Sides) -> tuple[Targets, Floats]:
    """30 classes, some rare; the text tells one of six rows, the image one of five columns."""
    kinds, rng = 30, sides.rng
    rows, columns = rng.standard_normal((6, 8)), rng.standard_normal((5, 8))
    of_text = 1.5 * sides.text[:, :8] @ rows.T
    of_image = 1.5 * sides.image[:, :8] @ columns.T
    logits = of_text[:, np.arange(kinds) // 5] + of_image[:, np.arange(kinds) % 5]
    logits = logits - np.log(np.arange(1, kinds + 1))
    names = tuple(f"class {kind:02d}" for kind in range(kinds))
    return Targets("classify", names, _drawn_class(logits, rng)), logits


def regression(sides: Sides) -> tuple[Targets, Floats]:
    a, b = sides.text[:, 0], sides.image[:, 0]
    value = 100 + 20 * (a * b + 0.5 * a)
    noisy = value + 8 * sides.rng.standard_normal(sides.n)
    return Targets("regress", (), noisy.astype(np.float32)), value[:, None]


def labels(sides: Sides) -> tuple[Targets, Floats]:
    """Four labels: by the text, by the image, by their product, and a rare one."""
    a, b = sides.text[:, :2], sides.image[:, :2]
    scores = [3 * a[:, 0], 3 * b[:, 0], 6 * a[:, 0] * b[:, 0], 4 * (a[:, 1] + b[:, 1]) - 6]
    logits = np.stack(scores, axis=1)
    values = sides.rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    names = ("text", "image", "product", "rare")
    return Targets("multilabel", names, values.astype(np.float32)), logits


def tags(sides: Sides) -> tuple[Targets, Floats]:
    """A word's tag follows from the word, from the picture, and from both."""
    word = sides.text[:, None, :] + sides.words  # [n, T, HIDDEN]
    a, b = word[..., 0], sides.image[:, None, 0]
    logits = 3 * np.stack([a + 0 * b, 2 * a * b, b + 0 * a, word[..., 1]], axis=-1)
    values = _drawn_class(logits, sides.rng)
    values[np.arange(values.shape[1]) >= sides.lengths[:, None]] = IGNORED
    return Targets("tag", ("a", "ab", "b", "other"), values), logits


TASKS: dict[str, tuple[Callable[[Sides], tuple[Targets, Floats | None]], tuple[str, ...]]] = {
    "product": (product, ("pooled", "patches")),
    "additive": (additive, ("pooled", "patches")),
    "curved": (curved, ("pooled", "patches")),
    "both": (both, ("pooled", "patches")),
    "text only": (text_only, ("pooled", "patches")),
    "image only": (image_only, ("pooled", "patches")),
    "noise": (noise, ("pooled", "patches")),
    "pointer": (pointer, ("patches",)),
    "classes": (classes, ("pooled", "patches")),
    "regression": (regression, ("pooled", "patches")),
    "labels": (labels, ("pooled", "patches")),
    "tags": (tags, ("patches",)),
}


@dataclass(frozen=True)
class Row:
    """What one training gave.

    Attributes:
        values: metric on the fresh pairs by line of the table.
        reachable: by the rule; None if nothing can be learnt.
        variant: the candidate that `auto` took.
        seconds: of one core that training took.
        interaction, image: test parts whose verdict says that interaction adds, and that the
            image helps.
        parts: how many test parts.
        missed: intervals of differences that leave out the difference on all fresh pairs.
        intervals: how many there are.
    """

    values: dict[str, float]
    reachable: float | None
    variant: str
    seconds: float
    interaction: int
    image: int
    parts: int
    missed: int
    intervals: int


def run(name: str, layout: str, pairs: int, seed: int, options: TrainOptions) -> Row:
    """Train everything with the defaults on one draw of a task."""
    rng = np.random.default_rng([seed, len(name), ord(name[0]), pairs])
    sides = Sides(pairs + TEST, LAYOUTS[layout], rng)
    targets, rule = TASKS[name][0](sides)
    examples = sides.examples()
    rows = np.arange(pairs)
    validation = round(pairs * default_share(round(1.2 * pairs)))
    fresh = np.arange(pairs, pairs + TEST)
    split = Split(rows[validation:], rows[:validation], fresh, np.arange(pairs + TEST))
    began = time.process_time()
    fitted = fit(examples, targets, split, options, Quiet())
    seconds = time.process_time() - began
    part = Part(examples, targets, split.groups, fresh, 0, "cpu")
    logits = {model.name: part.logits(model) for model in fitted}
    values = {model: headline(part.flat(found)) for model, found in logits.items()}
    size = max(60, pairs // 5)
    parts = [fresh[i : i + size] for i in range(0, TEST - size + 1, size)]
    found = [_differences(fitted, targets, logits, fresh, small) for small in parts]
    true = {name: values[FUSION] - values[name] for name in (TEXT, ADDITIVE)}
    missed = [not one[name].low <= true[name] <= one[name].high for one in found for name in true]
    reachable = None
    if rule is not None:
        rule = rule[fresh]
        reachable = headline(flatten(targets.take(fresh), rule, fresh))
    return Row(
        values,
        reachable,
        fitted[-1].info.variant,
        seconds,
        sum(one[ADDITIVE].above_zero for one in found),
        sum(one[TEXT].above_zero for one in found),
        len(parts),
        sum(missed),
        len(missed),
    )


def _differences(
    fitted: list[Fitted],
    targets: Targets,
    logits: dict[str, NDArray[np.float32]],
    fresh: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> dict[str, Interval]:
    """The fusion minus each other model on some rows, with its interval."""
    place = rows - fresh[0]
    models = [
        Measured(
            model.name,
            _flat(targets, logits[model.name][place], rows),
            calibration_of(model, targets),
        )
        for model in fitted
    ]
    result = compare("test", models, len(rows), 0)
    return {one.minus: one.difference for one in result.contrasts}


def _flat(targets: Targets, logits: NDArray[np.float32], rows: NDArray[np.int64]) -> Flat:
    return flatten(targets.take(rows), logits, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--layouts", nargs="*", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--pairs", nargs="*", type=int, default=[300])
    parser.add_argument("--draws", type=int, default=1, help="trainings of each task")
    parser.add_argument("--first-draw", type=int, default=0)
    given = parser.parse_args()
    options = TrainOptions(PairOptions(), LabelOptions(), "run", device="cpu")
    head = [*LINES, "reachable", "interaction", "image helps", "missed", "CPU s", "auto took"]
    print(f"| task | features | pairs | draw | {' | '.join(head)} |")
    print(f"|---|---|---|---|{'---|' * len(head)}")
    rows: list[Row] = []
    for pairs in given.pairs:
        for name in given.tasks:
            for layout in (x for x in TASKS[name][1] if x in given.layouts):
                for draw in range(given.first_draw, given.first_draw + given.draws):
                    row = run(name, layout, pairs, draw, replace(options, seed=draw))
                    cells = [f"{row.values[line]:.3f}" for line in LINES]
                    cells.append("" if row.reachable is None else f"{row.reachable:.3f}")
                    cells += [f"{row.interaction}/{row.parts}", f"{row.image}/{row.parts}"]
                    cells += [f"{row.missed}/{row.intervals}", f"{row.seconds:.0f}", row.variant]
                    rows.append(row)
                    print(
                        f"| {name} | {layout} | {pairs} | {draw} | {' | '.join(cells)} |",
                        flush=True,
                    )
    parts, intervals = sum(row.parts for row in rows), sum(row.intervals for row in rows)
    print(
        f"\nOf {parts} test parts {sum(row.interaction for row in rows)} say that interaction adds "
        f"and {sum(row.image for row in rows)} that the image helps; "
        f"{sum(row.missed for row in rows)} of {intervals} intervals leave out the truth."
    )


if __name__ == "__main__":
    main()
