"""What `train` can be told. Defaults that depend on the number of pairs are None here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from fusecli.errors import UsageError, refuse_empty_name
from fusecli.features.pair_inputs import ReadOptions
from fusecli.fusion.backend.device import check_device_name
from fusecli.fusion.options import ModuleOptions, check_choice
from fusecli.pairs.pair import PairOptions
from fusecli.training.literals import TrainDtype, TrainMethod
from fusecli.training.targets import TASKS, Task

# --method: the best of a few candidates on the inner validation part.
AUTO: Literal["auto"] = "auto"

TRAIN_DTYPES: tuple[TrainDtype, ...] = get_args(TrainDtype)
LARGEST_NUMBER = 2**31 - 1  # of epochs, pairs in a batch, and the like
MOST_SEEDS = 64


@dataclass(frozen=True)
class LabelOptions:
    """Where the labels are; the meanings are those of the options of that name.

    Attributes:
        file: a .csv, .jsonl or .parquet file with a column `id`; None: columns of the manifest,
            or no labels (`match`).
        column: the column of the labels; None: `label`.
        group: the column of the groups; None: `group`, where there is one.
        task: None: told by the labels.
        strict: labels without a pair and pairs without a label are an error.
    """

    file: str | None = None
    column: str | None = None
    group: str | None = None
    task: Task | None = None
    strict: bool = False


@dataclass(frozen=True)
class TrainOptions:
    """A whole training; the meanings are those of the options of that name.

    Attributes:
        pairs: where pairs come from.
        labels: where their labels come from.
        output: the folder of the run.
        reading: how the files of a pair are read.
        method: "auto", or a fusion method.
        module: what else is said of the module; its `method` is None for "auto".
        epochs: at most; None: by the number of pairs.
        batch_size: pairs a step; None: the recipe's.
        lr: the highest learning rate; None: the recipe's.
        weight_decay: of matrices; None: the recipe's.
        dropout: in the head; None: the recipe's.
        patience: epochs without a better validation score before training stops; None: the
            recipe's.
        seed: of the splits, the initial weights, dropout and the order of pairs.
        seeds: models of each kind, with `seed`, `seed` + 1, ...; their logits are averaged. None:
            by the number of pairs.
        val_fraction: share of the inner validation part, of all pairs; None: by their number.
        test_fraction: share of the held-out part, of all pairs; None: by their number.
        folds: K for out-of-fold predictions of all pairs; None: one held-out part.
        device: auto, cpu, cuda, cuda:1 or mps.
        dtype: "float32", or "bfloat16" for autocast on a GPU.
        max_memory: bytes of features that are held; above that they are read from the files in
            each epoch. None: the default of `read_examples`.
        resume: refuse to begin anew: there must be a run to go on with.
        force: begin anew over a run of other options.
    """

    pairs: PairOptions
    labels: LabelOptions
    output: str
    reading: ReadOptions = field(default_factory=ReadOptions)
    method: TrainMethod = AUTO
    module: ModuleOptions = field(default_factory=ModuleOptions)
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    dropout: float | None = None
    patience: int | None = None
    seed: int = 0
    seeds: int | None = None
    val_fraction: float | None = None
    test_fraction: float | None = None
    folds: int | None = None
    device: str = "auto"
    dtype: TrainDtype = "float32"
    max_memory: int | None = None
    resume: bool = False
    force: bool = False

    def check(self) -> None:
        """Raises:
        UsageError: the options contradict each other or are not possible.
        """
        refuse_empty_name(self.output)
        if self.output == "-":
            raise UsageError("-o -: training writes a folder; name one (./- for one called -)")
        check_choice("--task", self.labels.task, TASKS)
        check_choice("--dtype", self.dtype, TRAIN_DTYPES)
        check_device_name(self.device)
        for option, value, least in (
            ("--epochs", self.epochs, 1),
            ("--batch-size", self.batch_size, 1),
            ("--patience", self.patience, 1),
            ("--seed", self.seed, 0),
            ("--seeds", self.seeds, 1),
            ("--folds", self.folds, 2),
        ):
            if value is not None and value < least:
                raise UsageError(f"{option} must be at least {least}, found {value}")
            if value is not None and value > LARGEST_NUMBER:
                raise UsageError(f"{option} must be at most {LARGEST_NUMBER:,}, found {value}")
        if self.seeds is not None and self.seeds > MOST_SEEDS:
            raise UsageError(f"--seeds must be at most {MOST_SEEDS}, found {self.seeds}")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise UsageError(f"--lr must be above 0, found {self.lr:g}")
        if self.weight_decay is not None and not 0 <= self.weight_decay < float("inf"):
            raise UsageError(f"--weight-decay must be 0 or more, found {self.weight_decay:g}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UsageError(f"--dropout must be from 0 to below 1, found {self.dropout:g}")
        for option, share in (
            ("--val-fraction", self.val_fraction),
            ("--test-fraction", self.test_fraction),
        ):
            if share is not None and not 0 < share <= 0.5:
                raise UsageError(f"{option} must be above 0 and at most 0.5, found {share:g}")
        if self.folds is not None and self.test_fraction is not None:
            raise UsageError("--folds holds out every pair once: leave --test-fraction out")
        if self.labels.task == "match" and self.labels.file is not None:
            raise UsageError("--task match takes no labels: leave --labels out")
        if self.resume and self.force:
            raise UsageError("--resume goes on with a run, --force begins anew: say one of them")
