"""What a fusion can be, and what contradicts itself."""

import json

import pytest

from fusecli import FusionConfig, Switches
from fusecli.errors import UsageError, WeightsError

# A file written before there were other methods than attention.
OLD = {
    "embed_dim": 12,
    "num_heads": 3,
    "image_dim": 7,
    "text_dim": 12,
    "residual": True,
    "norm": False,
    "null_token": False,
    "method": "attention",
}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"method": "mean"}, "unknown fusion method 'mean': there is attention, concat, sum, tran"),
        ({"method": "concat", "residual": True}, "--residual belongs to --method attention, not"),
        ({"method": "sum", "num_heads": 4}, "--heads belongs to --method attention or transformer"),
        ({"method": "transformer", "null_token": True}, "--null-token belongs to --method attenti"),
        ({"method": "transformer", "gate": True}, "--gate belongs to --method attention, not to"),
        ({"layers": 3}, "--layers belongs to --method transformer, not to attention"),
        ({"ffn_dim": 3}, "--ffn-dim belongs to --method transformer, not to attention"),
        ({"alpha": 0.1}, "--alpha belongs to --method sum, not to attention"),
        ({"projected": True}, "a projection belongs to --method concat or sum, not to attention"),
        ({"gate": True, "residual": True}, "--gate keeps the text and --residual adds the projec"),
        ({"gate": True, "norm": True}, "--gate keeps the text and --norm changes the text: leave"),
        (
            {"gate": True, "text_dim": 6, "image_dim": 5},
            "--gate adds attention to the query side, and text 6 and image 5 are not 12 wide: "
            "use --dim 6, or --direction image --dim 5",
        ),
        (
            {"method": "sum", "alpha": 1.5, "projected": True},
            "--alpha must be from 0 to 1, found",
        ),
        ({"method": "sum", "alpha": -0.1, "projected": True}, "--alpha must be from 0 to 1"),
        (
            {"method": "sum", "alpha": float("nan"), "projected": True},
            "--alpha must be from 0 to 1",
        ),
        ({"method": "sum", "text_dim": 5}, "found text 5 and image 12: use --dim, which projects"),
        ({"method": "concat"}, "concatenated, are 24 wide, not 12 without a projection"),
        ({"method": "transformer", "num_heads": 5}, "--heads 5 does not divide the width D, 12"),
        ({"method": "transformer", "layers": 0}, "--layers must be from 1 to 256, found 0"),
        ({"method": "transformer", "layers": 257}, "--layers must be from 1 to 256, found 257"),
        ({"method": "transformer", "ffn_dim": -1}, "--ffn-dim must be from 1 to"),
        ({"rank": 3}, "--rank belongs to --method bilinear, not to attention"),
        ({"method": "bilinear", "rank": -1}, "--rank must be from 1 to 1,048,576, found -1"),
        ({"method": "bilinear", "residual": True}, "--residual belongs to --method attention, no"),
    ],
)
def test_what_contradicts_itself_is_refused(fields, sentence):
    heads = {} if fields.get("method") in ("concat", "sum", "bilinear") else {"num_heads": 3}
    with pytest.raises(UsageError) as caught:
        FusionConfig(12, **(heads | fields))
    assert sentence in str(caught.value)


def test_old_files_are_read():
    config = FusionConfig.from_dict(OLD, "w.safetensors")
    assert config == FusionConfig(12, 3, 7, 12, residual=True)
    assert not config.gate


@pytest.mark.parametrize(
    "config",
    [
        FusionConfig(12, 3, 7, 12, gate=True),
        FusionConfig(19, 8, 7, 12, method="concat"),
        FusionConfig(5, 8, 7, 12, method="concat", projected=True),
        FusionConfig(12, 8, 7, 5, method="sum", projected=True, alpha=0.25),
        FusionConfig(12, 8, 7, 5, method="bilinear", rank=3),
        FusionConfig(12, 3, method="transformer", layers=1, ffn_dim=9),
    ],
    ids=lambda config: config.method,
)
def test_a_file_holds_what_its_method_reads_and_nothing_else(config):
    data = json.loads(json.dumps(config.to_dict()))
    assert FusionConfig.from_dict(data, "w") == config
    own = {"concat": 5, "sum": 6, "bilinear": 5, "transformer": 7, "attention": 9}
    assert len(data) == own[config.method]
    assert ("num_heads" in data) == config.has_heads


def test_heads_are_asked_for_only_where_there_are_some():
    assert FusionConfig.from_dict({"embed_dim": 12, "method": "sum"}, "w").method == "sum"
    with pytest.raises(WeightsError, match="w: its fusecli metadata has no num_heads"):
        FusionConfig.from_dict({"embed_dim": 12, "method": "transformer"}, "w")


@pytest.mark.parametrize(
    ("switches", "image_dim", "text_dim", "expected"),
    [
        (Switches(), 7, 16, FusionConfig(16, 8, 7, 16)),
        (Switches(method="concat"), 7, 5, FusionConfig(12, 8, 7, 5, method="concat")),
        (
            Switches(dim=12, method="concat"),
            7,
            5,
            FusionConfig(12, 8, 7, 5, method="concat", projected=True),
        ),
        (Switches(method="sum"), 5, 5, FusionConfig(5, method="sum")),
        (
            Switches(method="sum", alpha=0.2),
            7,
            5,
            FusionConfig(5, 8, 7, 5, method="sum", projected=True, alpha=0.2),
        ),
        (Switches(dim=5, method="sum"), 5, 5, FusionConfig(5, method="sum", projected=True)),
        (
            Switches(heads=5, method="transformer", layers=1),
            7,
            5,
            FusionConfig(5, 5, 7, 5, method="transformer", layers=1),
        ),
    ],
    ids=str,
)
def test_options_make_a_config(switches, image_dim, text_dim, expected):
    assert switches.config(image_dim, text_dim) == expected


def test_a_feed_forward_is_four_times_as_wide_by_default():
    assert FusionConfig(12, 3, method="transformer").ffn_dim == 48
