"""What of an attention map is drawn, and what is said beside it."""

import numpy as np
import pytest

from fusecli.errors import FuseError
from fusecli.features.axes import read_axes
from fusecli.features.pair_shapes import match_pair
from fusecli.maps.selection import Drawing, Grid, choose_grid, prepare_drawing
from fusecli.maps.view import Scale, binned, loudest, view_of
from fusecli.maps.writer import MapOptions
from tests.maps.views import image_axes, peaked


def shapes_of(image, text):
    axes = image_axes(image), read_axes("text", text, None, "text.npy")
    return match_pair(*axes, "image.npy", "text.npy")


def drawing(T, P, rows=None, real=None, grid=None, sample=0, photo=None):
    return Drawing(
        sample,
        [f"w{index}" for index in range(T)],
        np.arange(T) if rows is None else np.array(rows),
        np.ones(P, bool) if real is None else np.array(real, bool),
        grid,
        photo,
    )


def view(weights, plan, N=1, null_token=False, origin=None):
    names = ("a/image.npy", "b/text.npy")
    return view_of(np.asarray(weights, np.float32), plan, names, N, null_token, origin)


# --- the grid -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "P", "grid"),
    [
        (None, 49, Grid(7, 7, 0, True)),
        (None, 50, Grid(7, 7, 1, True)),
        (None, 196, Grid(14, 14, 0, True)),
        (None, 577, Grid(24, 24, 1, True)),
        (None, 4, Grid(2, 2, 0, True)),
        (None, 5, Grid(2, 2, 1, True)),
        (None, 1, None),
        (None, 2, None),
        (None, 48, None),
        ("none", 49, None),
        ("7x7", 49, Grid(7, 7)),
        ("7x7", 50, Grid(7, 7, 1)),
        ("6X8", 48, Grid(6, 8)),
        ("6×8", 49, Grid(6, 8, 1)),
        ("1x2", 2, Grid(1, 2)),
        ("16x16+5", 261, Grid(16, 16, 5)),
        ("7x7+0", 49, Grid(7, 7)),
    ],
)
def test_a_grid_is_said_or_guessed(named, P, grid):
    assert choose_grid(named, image_axes((P, 3))) == grid


def test_a_feature_map_has_its_own_rows_and_columns():
    assert choose_grid(None, image_axes((3, 4, 9), "DHW")) == Grid(4, 9)
    assert choose_grid(None, image_axes((3, 9, 4), "DWH")) == Grid(4, 9)
    assert choose_grid("none", image_axes((3, 4, 9), "DHW")) is None
    assert choose_grid("4x9", image_axes((3, 4, 9), "DHW")) == Grid(4, 9)
    with pytest.raises(FuseError, match=r"is read as DHW, a feature map of 4 x 9: leave --grid"):
        choose_grid("9x4", image_axes((3, 4, 9), "DHW"))


@pytest.mark.parametrize(
    ("named", "P", "says"),
    [
        ("7", 49, "--grid 7: expected ROWSxCOLUMNS such as 14x14, or none"),
        ("7x", 49, "expected ROWSxCOLUMNS"),
        ("-7x-7", 49, "expected ROWSxCOLUMNS"),
        ("7x7x7", 343, "expected ROWSxCOLUMNS"),
        ("9999999x1", 1, "expected ROWSxCOLUMNS"),
        ("7x7", 48, "--grid 7x7: 7 x 7 is 49 tokens, the image has 48"),
        ("7x7", 51, "7 x 7 is 49 tokens, the image has 51"),
        ("7x7+2", 50, "7 x 7 + 2 is 51 tokens, the image has 50"),
        ("0x7", 1, "--grid 0x7: rows and columns must be at least 1"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(named, P, says):
    with pytest.raises(FuseError) as refused:
        choose_grid(named, image_axes((P, 3)))
    assert says in str(refused.value)


# --- before anything is computed -------------------------------------------------------------


def test_padded_text_tokens_are_not_drawn_and_labels_may_leave_them_out(tmp_path):
    mask = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [1, 1, 0, 0, 0]], bool)
    shapes = shapes_of((3, 4, 8), (3, 5, 8))
    for words in (["a", "b", "c", "d", "e"], ["a", "c", "d"]):
        path = tmp_path / "t.txt"
        path.write_text("\n".join(words))
        options = MapOptions(show=True, sample=1, tokens=str(path))
        plan = prepare_drawing(options, shapes, "text.npy", None, mask)
        assert plan.rows.tolist() == [0, 2, 3]
        assert [plan.labels[row] for row in plan.rows] == ["a", "c", "d"]
    path.write_text("a\nb\nc\nd")
    with pytest.raises(FuseError, match=r"names 4 tokens, the text has 5 \(or 3, those not mask"):
        prepare_drawing(options, shapes, "text.npy", None, mask)
    path.write_text("a\nc\nd")  # the words of a padded text, whose mask was not given
    with pytest.raises(
        FuseError, match=r"the text has 5; if the others are padding, .*--text-mask; .*\[CLS\]"
    ):
        prepare_drawing(options, shapes, "text.npy", None, None)


@pytest.mark.parametrize(
    ("options", "image", "text", "says"),
    [
        (MapOptions(show=True, sample=3), (3, 4, 8), (3, 5, 8), "--sample 3: the files hold 3"),
        (MapOptions(show=True, sample=-1), (3, 4, 8), (3, 5, 8), "--sample -1: the files hold 3"),
        (MapOptions(show=True), (4, 8), (513, 8), "513 text tokens, and at most 512 can be drawn"),
        (MapOptions(show=True), (90_000, 8), (100, 8), "100 x 90,000 weights, and at most"),
        (MapOptions(plot="p.png"), (5000, 8), (5, 8), "at most 4,096 image tokens in a row"),
        (
            MapOptions(plot="p.png", image_file="x.jpg"),
            (6, 8),
            (5, 8),
            "x.jpg: where in it 6 image tokens would lie is not known: say --grid",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_refused(options, image, text, says):
    with pytest.raises(FuseError) as refused:
        prepare_drawing(options, shapes_of(image, text), "text.npy", None, None)
    assert says in str(refused.value)


# --- what is drawn and said --------------------------------------------------------------------


def test_weights_are_drawn_in_multiples_of_the_uniform_one():
    weights = peaked(2, 3, 4)
    made = view(weights, drawing(3, 4))
    np.testing.assert_allclose(made.times, weights.mean(0) * 4, rtol=1e-6)
    assert made.unit == "1/4 = 0.25"
    assert made.title == "Attention of text.npy to image.npy"
    assert "Mean over 2 heads" in made.caption[0]
    assert view(weights[:1], drawing(3, 4)).caption == ["One head."]
    assert view(weights, drawing(3, 4, sample=2), N=7).title.endswith(", sample 2 of 7")


def test_padding_counts_for_nothing():
    weights = np.zeros((2, 3, 5), np.float32)
    weights[:, :2, [0, 3]] = 0.5
    made = view(weights, drawing(3, 5, rows=[0, 1], real=[1, 0, 0, 1, 0]))
    assert made.times.shape == (2, 5)
    assert np.isnan(made.times[:, [1, 2, 4]]).all()
    assert (made.times[:, [0, 3]] == 1).all()
    assert made.labels == ["w0", "w1"]
    assert "1 padded text token not drawn." in made.caption
    assert "3 padded image tokens hatched." in made.places
    assert made.verdict.startswith("Nearly uniform")


def test_the_null_token_s_share_is_said():
    weights = np.full((1, 2, 3), 0.3, np.float32)
    weights[0, 1] = 0.25
    made = view(weights, drawing(2, 3), null_token=True)
    assert made.unit == "1/4 = 0.25"
    said = " ".join(made.caption)
    assert "takes 0.175 of a text token's weight (0.1 to 0.25; uniform would be 0.25)" in said
    uniform = view(np.full((1, 2, 3), 0.25), drawing(2, 3), null_token=True)
    assert "all image tokens and the null token about alike" in uniform.verdict


def test_the_verdict_names_what_a_reader_must_know():
    one = view(np.ones((2, 3, 1)), drawing(3, 1))
    assert "its weight is 1 whatever the text, so this map means nothing" in one.verdict
    masked = view(np.eye(4)[None, :1].repeat(3, 1), drawing(3, 4, real=[1, 0, 0, 0]))
    assert masked.verdict.startswith("One real image token: its weight is 1")
    assert one.verdict.startswith("One image token: ")
    empty = view(np.zeros((2, 3, 4)), drawing(3, 4, real=[0, 0, 0, 0]))
    assert empty.verdict == "No real image token: there is nothing to attend to."
    assert empty.caption == []
    uniform = view(np.full((2, 3, 4), 0.25), drawing(3, 4), origin="untrained, seed 7")
    assert "Nearly uniform" in uniform.verdict
    assert "mean entropy 1.0000 of its maximum" in uniform.verdict
    assert uniform.verdict.endswith("Weights: untrained, seed 7.")
    sharp = view(peaked(2, 3, 40), drawing(3, 40))
    assert sharp.verdict.startswith("Mean entropy 0.")
    assert "Nearly" not in sharp.verdict


def test_heads_that_differ_are_not_called_uniform_because_their_mean_is():
    weights = np.stack([np.eye(4), 1 / 3 - np.eye(4) / 3])  # [2, 4, 4]
    made = view(np.concatenate([weights] + [weights[1:]] * 2), drawing(4, 4))
    assert "Nearly" not in made.verdict
    assert "the mean's own entropy is 1.0000" in made.caption[0]


def test_weights_that_are_no_numbers_are_left_out_and_said():
    weights = peaked(2, 3, 4)
    weights[0, 1] = np.nan
    made = view(weights, drawing(3, 4))
    assert np.isnan(made.times[1]).all()
    assert np.isfinite(made.times[[0, 2]]).all()
    assert "not finite" in made.verdict
    assert any("not finite" in line for line in made.caption)


def test_a_class_token_is_named_and_not_placed():
    weights = np.full((1, 2, 5), 0.1, np.float32)
    weights[..., 0] = 0.6
    made = view(weights, drawing(2, 5, grid=Grid(2, 2, 1, True)))
    assert made.placed.shape == (2, 4)
    assert Scale.of(made.placed).largest == pytest.approx(0.5)
    assert "Image tokens as 2x2, row by row, a guess from their number." in made.places
    assert "The class token (image token 0) not drawn; mean weight 3 times uniform." in made.places
    made = view(weights, drawing(2, 5, grid=Grid(1, 3, 2)))
    assert any(line.startswith("The first 2 image tokens not drawn") for line in made.places)


def test_a_photo_of_other_proportions_than_the_grid_is_said():
    for shape, said in (((40, 40, 3), False), ((40, 60, 3), True)):
        plan = drawing(2, 4, grid=Grid(2, 2), photo=np.zeros(shape, np.uint8))
        lines = view(np.full((1, 2, 4), 0.25), plan).places
        assert any("not of the grid's proportions" in line for line in lines) is said


def test_labels_are_harmless():
    plan = drawing(2, 3)
    plan.labels[:] = ["a\x1b[31m\nb", "\u202ec"]
    made = view(peaked(1, 2, 3), plan)
    assert made.labels == ["a\\x1b[31m\\nb", "\\u202ec"]


# --- the scale -----------------------------------------------------------------------------------


def test_the_scale_begins_at_zero_and_does_not_stretch_noise():
    noise = 1 + 0.05 * np.random.default_rng(0).standard_normal((20, 49))
    scale = Scale.of(noise)
    assert scale.top == 4
    share = scale.share(noise)
    assert share.max() - share.min() < 0.12
    assert scale.share(np.array([0.0, 1.0, 4.0])).tolist() == [0, 0.5, 1]
    wide = Scale.of(np.array([[0.1, 49.0, np.nan]]))
    assert (wide.least, wide.top) == (0.1, 49)
    assert Scale.of(np.full((2, 2), np.nan)).top == 4


def test_bins_are_means_of_neighbours_without_padding():
    times = np.array([[1.0, 3, np.nan, 5, np.nan, np.nan, 7]])
    np.testing.assert_equal(binned(times, 7), times)
    # Image tokens 0 1 | 2 3 | 4 5 6
    np.testing.assert_equal(binned(times, 3), [[2, 5, 7]])
    np.testing.assert_equal(binned(times[:, 2:6], 2), [[5, np.nan]])
    assert binned(np.ones((2, 577)), 60).shape == (2, 60)


def test_the_loudest_image_token_of_each_word():
    made = view(np.array([[[0.1, 0.9, 0], [0.3, 0.3, 0.4]]]), drawing(2, 3))
    assert [at for _, at in loudest(made)] == [1, 2]
    assert loudest(made)[0][0] == pytest.approx(2.7)
    nothing = view(np.zeros((1, 2, 3)), drawing(2, 3, real=[0, 0, 0]))
    assert [at for _, at in loudest(nothing)] == [-1, -1]
