"""Results of models as a report has them, to give verdicts on."""

from __future__ import annotations

from fusecli.training.bootstrap import Interval
from fusecli.training.calibration import Calibration
from fusecli.training.results import Contrast, ModelResult, PartResult

NAMES = ("majority", "text only", "image only", "additive", "concat + MLP", "fusion")


def model(name, value=0.8, **more):
    metrics = {"accuracy": 0.75, "average_precision": 0.7, "f1": None, "log_loss": 0.5}
    given = {"variant": "", "validation": 0.8, "seeds": (), "folds": ()} | more
    interval = Interval(value, value - 0.05, value + 0.05)
    return ModelResult(
        name=name, headline=interval, metrics=metrics, calibration=Calibration(), **given
    )


def result(task="classify", groups=80, **minus):
    """The fusion minus other models; a difference is (value, low, high)."""
    contrasts = [
        Contrast("fusion", name.replace("_", " "), Interval(*found))
        for name, found in minus.items()
    ]
    positive = "yes" if task == "classify" else ""
    models = [model(name) for name in NAMES]
    return PartResult("test", task, "AUC", positive, 100, 100, groups, models, contrasts)


HELPS, SMALL, HARMS = (0.11, 0.08, 0.14), (0.01, -0.02, 0.04), (-0.05, -0.08, -0.02)
