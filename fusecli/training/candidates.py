"""What is trained for each line of the table: baselines, and the candidates for the fusion."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fusecli.fusion.config import FusionConfig
from fusecli.fusion.literals import SIDES, MethodName
from fusecli.fusion.methods import method_named
from fusecli.fusion.options import ModuleOptions
from fusecli.training.examples import ChannelStatistics, Examples, Pooled, Side
from fusecli.training.loop import Recipe, default_epochs
from fusecli.training.model import PairModel
from fusecli.training.options import TrainOptions
from fusecli.training.side_index import Rows
from fusecli.training.standardise import unit_statistics
from fusecli.training.targets import Targets

Kind = Literal["fusion", "additive", "concat_mlp"]

WIDTH, HEADS = 128, 4
_MANY_ROWS = 20_000  # above, dropout does more harm than good
# With up to so many pairs of features at least so wide, models without dropout of inputs are not
# tried: they were never better there, and cost half of the time.
_FEW_ROWS, _NARROW = 1000, 64
# Of pairs of single vectors. A step on them is mostly overhead, which larger batches share. On two
# draws of 300 pairs of a product task, AUC differed from that of batches of 32 by less than 0.005.
_VECTOR_BATCH = 64
# Of many pairs of wide features. Each of a token's many numbers moves a score by a learning rate a
# step. With twice this rate, attention on 3,000 pairs 768 wide found a third of its solution or
# all of it, by chance (docs/training.md, "How good the defaults are").
_WIDE_LR = 5e-4


@dataclass(frozen=True)
class ModelSpec:
    """How a model is built, without its weights; plain data that is kept as JSON.

    Attributes:
        kind: the class of the model.
        outputs: number of logits C.
        tag: logits for every text token.
        image_dim, text_dim: widths of the features.
        width: of hidden layers.
        fusion: `FusionConfig.to_dict()`, for a fusion.
        linear: an additive model is linear.
        sides: of an additive model.
    """

    kind: Kind
    outputs: int
    tag: bool
    image_dim: int
    text_dim: int
    width: int = WIDTH
    fusion: dict[str, Any] | None = None
    linear: bool = False
    sides: tuple[str, ...] = ("text", "image")

    def build(self, text: ChannelStatistics, image: ChannelStatistics) -> PairModel:
        """The model with initial weights.

        Args:
            text, image: what the channels are standardised with.
        """
        from fusecli.training.baselines import AdditiveModel, ConcatMLP
        from fusecli.training.model import FusionModel, ModelShape

        shape = ModelShape(self.width, self.outputs, self.tag, text, image)
        if self.kind == "fusion":
            config = self.fusion_config()
            assert config is not None
            return FusionModel(config, shape)
        if self.kind == "additive":
            return AdditiveModel(self.linear, self.sides, shape)
        return ConcatMLP(shape)

    def statistics(
        self, examples: Examples, rows: Rows
    ) -> tuple[ChannelStatistics, ChannelStatistics]:
        """Mean and spread of both sides over the rows, of means where the model takes means; 0 and
        1 for a side that a fusion takes unchanged into its result."""
        pooled, raw = self.pooled(), self._unprojected()
        text, image = (
            unit_statistics(examples.width(side))
            if side in raw
            else examples.statistics(side, rows, pooled.of(side))
            for side in SIDES
        )
        return text, image

    def _unprojected(self) -> tuple[Side, ...]:
        """The sides that take part as they are: no weights could take a standardisation."""
        config = self.fusion_config()
        return () if config is None else config.how.unprojected(config)

    def fusion_config(self) -> FusionConfig | None:
        """The fusion; None for the other kinds of models."""
        return None if self.fusion is None else FusionConfig.from_dict(self.fusion, "run.json")

    def pooled(self) -> Pooled:
        """Which sides the model takes as means."""
        if self.kind == "fusion":
            config = self.fusion_config()
            return Pooled(image=config is not None and config.how.pools_context)
        if self.kind == "concat_mlp":
            return Pooled(not self.tag, True)
        text = (self.linear or "text" not in self.sides) and not self.tag
        return Pooled(text, self.linear or "image" not in self.sides)

    def to_dict(self) -> dict[str, Any]:
        """Names and values of the fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSpec:
        """Read back what `to_dict` gave."""
        return cls(**{**data, "sides": tuple(data["sides"])})


@dataclass(frozen=True)
class Candidate:
    """One way to fill a line of the table.

    Attributes:
        family: the line: "text only", "image only", "additive", "concat + MLP" or "fusion".
        name: of this way, unique in its family.
        spec: of the model.
        recipe: how it is trained.
        cost: multiply-adds of a pair, roughly, to begin with the longest job.
    """

    family: str
    name: str
    spec: ModelSpec
    recipe: Recipe
    cost: float


def base_recipe(
    options: TrainOptions, n: int, *, vectors: bool = False, wide: bool = False
) -> Recipe:
    """The recipe for n pairs, with what the options say.

    Args:
        options: of the run.
        n: pairs that are learnt from.
        vectors: both sides of every pair are one token.
        wide: the features of both sides have at least `_NARROW` channels.
    """
    recipe = Recipe(epochs=options.epochs or default_epochs(n))
    if vectors and n <= _FEW_ROWS:
        recipe = replace(recipe, batch_size=_VECTOR_BATCH)
    if wide and n > _FEW_ROWS:
        recipe = replace(recipe, lr=_WIDE_LR)
    given: dict[str, Any] = {
        "batch_size": options.batch_size,
        "lr": options.lr,
        "weight_decay": options.weight_decay,
        "patience": options.patience,
    }
    recipe = replace(recipe, **{name: v for name, v in given.items() if v is not None})
    if n > _MANY_ROWS:
        recipe = replace(recipe, channels=0.1, patches=0.1, head=0.1)
    if options.dropout is not None:
        recipe = replace(recipe, head=options.dropout)
    return recipe


def light(recipe: Recipe) -> Recipe:
    """The recipe without dropout of inputs and smoothing of labels.

    Where the image's features are few channels and pairs are thousands, these cost a lot.
    """
    return replace(recipe, channels=0.0, patches=0.0, smoothing=0.0)


def make_candidates(
    examples: Examples, targets: Targets, options: TrainOptions, n: int
) -> list[Candidate]:
    """Everything that is trained to choose from.

    Args:
        examples: the features.
        targets: the labels.
        options: of the run.
        n: pairs that are learnt from.

    Raises:
        UsageError: the module's options contradict each other or the features.
    """
    vectors = examples.lengths("text").max() == examples.lengths("image").max() == 1
    recipe = base_recipe(options, n, vectors=bool(vectors), wide=_wide(examples))
    spec = ModelSpec(
        "additive", targets.outputs, targets.per_token, examples.image_dim, examples.text_dim
    )
    found: list[Candidate] = []

    both = n > _FEW_ROWS or not _wide(examples)

    def add(family: str, name: str, spec: ModelSpec) -> None:
        cost = _cost(spec, examples)
        found.append(Candidate(family, name, spec, recipe, cost))
        if both and not spec.linear:
            found.append(Candidate(family, f"{name}, no input dropout", spec, light(recipe), cost))

    for config in fusion_configs(examples, options, n):
        name = config.method
        add("fusion", name, replace(spec, kind="fusion", fusion=config.to_dict()))
    sides: dict[str, tuple[str, ...]] = {
        "text only": ("text",),
        "image only": ("image",),
        "additive": ("text", "image"),
    }
    if targets.task != "match":
        for family, used in sides.items():
            add(family, "linear", replace(spec, linear=True, sides=used))
            add(family, "MLP", replace(spec, sides=used))
    add("concat + MLP", "MLP", replace(spec, kind="concat_mlp"))
    return found


def _wide(examples: Examples) -> bool:
    return min(examples.image_dim, examples.text_dim) >= _NARROW


def fusion_configs(examples: Examples, options: TrainOptions, n: int) -> list[FusionConfig]:
    """The fusions to choose from: one where a method is given, else those of `auto`.

    With few pairs of wide features `concat` is left out: it is nearly the model of the line
    "concat + MLP", which counts in the fusion's line as well.

    Args:
        examples: the features.
        options: of the run.
        n: pairs that are learnt from.

    Raises:
        UsageError: the module's options contradict each other or the features.
    """
    module = options.module
    if options.method != "auto":
        return [_config(options.method, module, examples)]
    general = ModuleOptions(dim=module.dim)  # what every method reads
    methods: list[MethodName] = ["attention", "bilinear"]
    if n > _FEW_ROWS or not _wide(examples):
        methods.append("concat")
    return [_config(m, module if m == "attention" else general, examples) for m in methods]


def _config(method: MethodName, module: ModuleOptions, examples: Examples) -> FusionConfig:
    given = {k: v for k, v in module.given.items() if k != "method"}
    defaults = method_named(method).training_fields(given, WIDTH, HEADS, examples.text_dim)
    return FusionConfig(
        image_dim=examples.image_dim,
        text_dim=examples.text_dim,
        method=method,
        **(defaults | given),
    )


def _cost(spec: ModelSpec, examples: Examples) -> float:
    pooled = spec.pooled()
    tokens: dict[Side, float] = {
        side: 1.0 if pooled.of(side) else float(examples.lengths(side).mean())
        for side in ("text", "image")
    }
    width = spec.width if not spec.linear else spec.outputs
    return width * (tokens["text"] * spec.text_dim + tokens["image"] * spec.image_dim)
