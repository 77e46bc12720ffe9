"""The table of the ways to fuse: its numbers are those of the modules and of torch's counter."""

import json

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fusecli import FusionConfig, Switches
from fusecli.errors import UsageError
from fusecli.fusion.compare import Shapes, compare_methods, multiply_adds
from fusecli.fusion.torch_modules import build_module

pytestmark = pytest.mark.usefixtures("one_thread")


def counted(module, image, text):
    """Multiply-adds of a forward pass, as torch counts them (two operations each)."""
    counter = FlopCounterMode(display=False)
    # It sees single products only: not into fused kernels, nor those of inference mode.
    with counter, sdpa_kernel(SDPBackend.MATH):
        module.train()(image, text)
    return counter.get_total_flops() // 2


@pytest.mark.slow
@pytest.mark.parametrize(("T", "P"), [(1, 1), (3, 5), (16, 7)])
@pytest.mark.parametrize(("layers", "ffn_dim"), [(1, 7), (3, 0)])
def test_a_transformer_costs_what_torch_counts(T, P, layers, ffn_dim):
    config = FusionConfig(12, 3, 10, 6, method="transformer", layers=layers, ffn_dim=ffn_dim)
    image, text = torch.zeros(P, 10), torch.zeros(T, 6)
    assert multiply_adds(config, T, P) == counted(build_module(config), image, text)


@pytest.mark.slow
def test_projections_cost_what_torch_counts_for_each_side_once():
    text, image = torch.zeros(3, 6), torch.zeros(5, 10)
    for method in ("concat", "sum"):
        config = FusionConfig(12, 8, 10, 6, method=method, projected=True)
        with FlopCounterMode(display=False) as counter:
            torch.nn.Linear(6, 12)(text), torch.nn.Linear(10, 12)(image.mean(0))
        products = counter.get_total_flops() // 2
        assert multiply_adds(config, 3, 5) == products + 5 * 10  # and the mean itself


@pytest.mark.slow
def test_a_bilinear_fusion_costs_what_torch_counts():
    config = FusionConfig(12, 8, 10, 6, method="bilinear", rank=4)
    products = counted(build_module(config), torch.zeros(5, 10), torch.zeros(3, 6))
    assert multiply_adds(config, 3, 5) == products + 5 * 10 + 3 * 4  # the mean, the product


@pytest.mark.slow
def test_attention_costs_no_more_than_the_plain_module():
    for T, P in ((1, 1), (8, 197), (77, 2), (16, 49)):
        config = FusionConfig(16, 4, 10, 6)
        plain = counted(build_module(config), torch.zeros(P, 10), torch.zeros(T, 6))
        assert 0 < multiply_adds(config, T, P) <= plain


def test_every_way_has_a_row_that_its_options_make():
    shapes = Shapes(T=3, P=5, text_dim=16, image_dim=16, heads=4)
    rows = {row.options.removeprefix("--method "): row for row in compare_methods(shapes)}
    assert list(rows) == [
        "concat",
        "concat --dim 16",
        "sum",
        "sum --dim 16",
        "bilinear",
        "attention",
        "attention --residual",
        "attention --gate",
        "transformer",
    ]
    assert rows["concat"].width == 32
    assert rows["concat"].parameters == rows["sum"].parameters == 0
    for name, switches in {
        "concat --dim 16": Switches(dim=16, method="concat"),
        "sum --dim 16": Switches(dim=16, method="sum"),
        "bilinear": Switches(method="bilinear"),
        "attention": Switches(heads=4),
        "attention --gate": Switches(heads=4, gate=True),
        "transformer": Switches(heads=4, method="transformer"),
    }.items():
        module = build_module(switches.config(16, 16))
        assert rows[name].width == 16
        assert rows[name].parameters == sum(p.numel() for p in module.parameters())
    assert {row.patches for row in rows.values()} == {"mean", "weighed"}
    assert {row.patches for row in compare_methods(Shapes(3, 1, 16, 16))} == {"one"}


def test_what_the_shapes_do_not_allow_is_said():
    rows = compare_methods(Shapes(T=3, P=5, text_dim=16, image_dim=8, dim=12))
    assert [row.options for row in rows if row.options.startswith("--method sum")] == [
        "--method sum --dim 12"
    ]
    problems = {row.options: row.problem for row in rows if row.problem}
    assert "--heads 8 does not divide the width D, 12" in problems["--method transformer"]
    rows = compare_methods(Shapes(T=3, P=5, text_dim=16, image_dim=8, dim=24))
    methods = ("concat", "sum", "bilinear", "attention", "transformer")
    problems = {
        row.options: row.problem
        for row in rows
        if row.problem and row.options.split()[1] in methods
    }
    assert list(problems) == ["--method attention --gate"]
    assert problems["--method attention --gate"].endswith(
        "use --dim 16, or --direction image --dim 8"
    )


def test_the_command_reads_shapes_from_two_files(cli, folder):
    np.save("image.npy", np.zeros((2, 5, 24), np.float32))
    np.save("text.npy", np.zeros((2, 3, 16), np.float32))
    done = cli("methods", "image.npy", "text.npy", "--json")
    data = json.loads(done.out)
    assert done.code == 0
    named = {"T": 3, "P": 5, "text_dim": 16, "image_dim": 24}
    assert named.items() <= data["shapes"].items()
    assert data["methods"][0]["width"] == 40
    done = cli("methods", "image.npy", "text.npy")
    assert done.out.startswith("a pair: T 3, Dt 16, P 5, Di 24\n")
    assert "transformer" in done.out
    assert done.err == ""


def test_the_command_takes_shapes_from_options(cli):
    done = cli("methods", "--T", "4", "--P", "9", "--text-dim", "8", "--image-dim", "6", "--json")
    shapes = json.loads(done.out)["shapes"]
    assert shapes == {
        "T": 4, "P": 9, "text_dim": 8, "image_dim": 6,
        "dim": None, "heads": None, "layers": None, "ffn_dim": None, "rank": None,
    }  # fmt: skip
    widest = max(map(len, cli("methods").out.splitlines()))
    assert widest <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["image.npy"], "give both files, IMAGE and TEXT, or none"),
        (["image.npy", "text.npy", "--P", "3"], "--P is taken from the files: leave it out, or"),
        (["--T", "0"], "--T must be at least 1, found 0"),
        (["--dim", "-3"], "--dim must be at least 1, found -3"),
    ],
)
def test_the_command_refuses_impossible_sizes(cli, folder, arguments, message):
    done = cli("methods", *arguments)
    assert done.code == UsageError.exit_code
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1
