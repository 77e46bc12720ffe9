"""What the axes of a file mean: every reading of the design, and the wrong ones next to it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusecli.errors import ShapeError, UsageError
from fusecli.features.axes import mask_shapes, read_axes
from fusecli.features.pair_shapes import match_pair

many = settings(max_examples=200, deadline=None)


def image(*shape, axes=None):
    return read_axes("image", shape, axes, "img.npy")


def text(*shape, axes=None):
    return read_axes("text", shape, axes, "txt.npy")


def matched(image_axes, text_axes):
    return match_pair(image_axes, text_axes, "img.npy", "txt.npy")


@pytest.mark.parametrize(
    ("side", "shape", "named", "letters", "samples", "tokens", "width", "order"),
    [
        # Inferred from the rank.
        ("image", (5,), None, "D", None, 1, 5, (0,)),
        ("text", (5,), None, "D", None, 1, 5, (0,)),
        ("image", (3, 5), None, "PD", None, 3, 5, (0, 1)),
        ("text", (3, 5), None, "TD", None, 3, 5, (0, 1)),
        ("image", (2, 3, 5), None, "NPD", 2, 3, 5, (0, 1, 2)),
        ("text", (2, 3, 5), None, "NTD", 2, 3, 5, (0, 1, 2)),
        # By name.
        ("image", (5,), "D", "D", None, 1, 5, (0,)),
        ("image", (2, 5), "ND", "ND", 2, 1, 5, (0, 1)),
        ("text", (2, 5), "ND", "ND", 2, 1, 5, (0, 1)),
        ("image", (3, 5), "PD", "PD", None, 3, 5, (0, 1)),
        ("image", (2, 3, 5), "DHW", "DHW", None, 15, 2, (1, 2, 0)),
        ("image", (2, 3, 5), "HWD", "HWD", None, 6, 5, (0, 1, 2)),
        ("image", (2, 3, 5, 7), "NDHW", "NDHW", 2, 35, 3, (0, 2, 3, 1)),
        ("image", (2, 3, 5, 7), "NHWD", "NHWD", 2, 15, 7, (0, 1, 2, 3)),
        # Sequence first, as nn.MultiheadAttention has it, and transposed files.
        ("image", (3, 2, 5), "PND", "PND", 2, 3, 5, (1, 0, 2)),
        ("text", (3, 2, 5), "TND", "TND", 2, 3, 5, (1, 0, 2)),
        ("image", (5, 3), "DP", "DP", None, 3, 5, (1, 0)),
        ("text", (5, 3), "DT", "DT", None, 3, 5, (1, 0)),
        ("image", (5, 2), "DN", "DN", 2, 1, 5, (1, 0)),
        ("image", (2, 3, 5), "DWH", "DWH", None, 15, 2, (2, 1, 0)),
        # Lower case is as good.
        ("image", (2, 3, 5, 7), "ndhw", "NDHW", 2, 35, 3, (0, 2, 3, 1)),
    ],
)
def test_every_reading_of_the_axes(side, shape, named, letters, samples, tokens, width, order):
    axes = read_axes(side, shape, named, "file")
    assert axes.letters == letters
    assert axes.samples == samples
    assert axes.tokens == tokens
    assert axes.width == width
    assert axes.order == order
    assert axes.origin == ("rank" if named is None else f"--{side}-axes")
    assert axes.meaning == dict(zip(letters, shape, strict=True))


@pytest.mark.parametrize(
    ("side", "shape", "sentence"),
    [
        ("image", (), "img.npy: holds a single number, expected image features of rank 1 to 3"),
        ("text", (), "holds a single number, expected text features"),
        (
            "image",
            (2, 3, 4, 5),
            r"a rank-4 image \[2, 3, 4, 5\] can be read in two ways: "
            "say --image-axes NDHW or --image-axes NHWD",
        ),
        ("text", (2, 3, 4, 5), r"rank 4 \[2, 3, 4, 5\] is no text feature: expected one of D"),
        ("image", (1, 1, 2, 3, 4), r"rank 5 \[1, 1, 2, 3, 4\] is no image feature"),
        ("text", (1, 1, 2, 3, 4), "rank 5"),
    ],
)
def test_ranks_without_a_meaning_are_refused(side, shape, sentence):
    with pytest.raises(ShapeError, match=sentence):
        read_axes(side, shape, None, "img.npy")


@pytest.mark.parametrize(
    ("side", "shape", "named", "sentence"),
    [
        ("image", (2, 3), "TD", "--image-axes TD: letter 'T' is not one of N, P, H, W, D"),
        ("text", (2, 3), "PD", "--text-axes PD: letter 'P' is not one of N, T, D"),
        ("text", (2, 3, 4), "DHW", "--text-axes DHW: letter 'H' is not one of N, T, D"),
        ("image", (2, 3), "XD", "letter 'X' is not one of"),
        ("image", (2, 3), "P D", "letter ' ' is not one of"),
        ("image", (2, 2), "DD", "a letter stands twice"),
        ("image", (2, 3, 4), "NND", "a letter stands twice"),
        ("image", (2, 3), "NP", "the feature axis D is missing"),
        ("text", (2, 3), "NT", "the feature axis D is missing"),
        ("image", (2,), "", "the feature axis D is missing"),
        ("image", (2, 3), "HD", "H and W belong together"),
        ("image", (2, 3), "WD", "H and W belong together"),
        ("image", (2, 3, 4, 5), "PDHW", "tokens are either P or H and W"),
    ],
)
def test_impossible_names_are_refused_with_examples(side, shape, named, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        read_axes(side, shape, named, "file")
    assert "for example D, " in str(caught.value)


@pytest.mark.parametrize(
    ("side", "shape", "named"),
    [
        ("image", (3,), "PD"),
        ("image", (2, 3), "NPD"),
        ("image", (2, 3, 4), "PD"),
        ("image", (2, 3, 4), "NDHW"),
        ("image", (2, 3, 4, 5), "DHW"),
        ("text", (2, 3), "NTD"),
        ("text", (2, 3, 4), "TD"),
        ("text", (2, 3), "D"),
    ],
)
def test_names_for_another_rank_are_refused(side, shape, named):
    with pytest.raises(ShapeError) as caught:
        read_axes(side, shape, named, "here.npy")
    said = str(caught.value)
    assert f"here.npy: --{side}-axes {named} names {len(named)} axes, the file has" in said
    assert str(list(shape)) in said


@pytest.mark.parametrize(
    ("side", "shape", "named", "what"),
    [
        ("image", (0,), None, "features of width 0"),
        ("image", (0, 5), None, "no tokens"),
        ("image", (3, 0), None, "features of width 0"),
        ("image", (0, 3, 5), None, "no samples"),
        ("image", (2, 0, 5), None, "no tokens"),
        ("image", (0, 5), "ND", "no samples"),
        ("image", (5, 0, 2), "DHW", "no tokens"),
        ("image", (5, 2, 0), "DHW", "no tokens"),
        ("text", (0, 5), None, "no tokens"),
        ("text", (2, 0, 5), None, "no tokens"),
        ("text", (0, 2, 5), None, "no samples"),
    ],
)
def test_empty_files_are_refused(side, shape, named, what):
    with pytest.raises(ShapeError, match=f"has {what}: there is nothing to fuse"):
        read_axes(side, shape, named, "file")


@pytest.mark.parametrize(
    ("image_axes", "text_axes", "N", "T", "P", "shared", "output"),
    [
        (image(5), text(5), 1, 1, 1, False, (7,)),
        (image(5), text(3, 6), 1, 3, 1, False, (3, 7)),
        (image(1, 5), text(8, 5), 1, 8, 1, False, (8, 7)),
        (image(4, 5), text(3, 6), 1, 3, 4, False, (3, 7)),
        (image(4, 5), text(6), 1, 1, 4, False, (7,)),
        (image(2, 4, 5), text(2, 3, 6), 2, 3, 4, False, (2, 3, 7)),
        (image(2, 5, axes="ND"), text(2, 3, 6), 2, 3, 1, False, (2, 3, 7)),
        (image(2, 5), text(2, 3, 6), 2, 3, 1, False, (2, 3, 7)),  # as many rows as samples
        (image(2, 5, axes="ND"), text(2, 6, axes="ND"), 2, 1, 1, False, (2, 7)),
        (image(2, 4, 5), text(2, 6, axes="ND"), 2, 1, 4, False, (2, 7)),
        # One image for all samples.
        (image(5), text(2, 3, 6), 2, 3, 1, True, (2, 3, 7)),
        (image(1, 5), text(2, 3, 6), 2, 3, 1, True, (2, 3, 7)),
        (image(4, 5, axes="PD"), text(2, 3, 6), 2, 3, 4, True, (2, 3, 7)),
        (image(2, 5, axes="PD"), text(2, 3, 6), 2, 3, 2, True, (2, 3, 7)),
        (image(1, 4, 5), text(2, 3, 6), 2, 3, 4, True, (2, 3, 7)),
        (image(5, 2, 2, axes="DHW"), text(2, 3, 6), 2, 3, 4, True, (2, 3, 7)),
        (image(2, 2, 5, axes="HWD"), text(2, 6, axes="ND"), 2, 1, 4, True, (2, 7)),
        # One text for all images.
        (image(2, 4, 5), text(1, 3, 6), 2, 3, 4, False, (2, 3, 7)),
        (image(2, 4, 5), text(3, 6), 2, 3, 4, False, (2, 3, 7)),
        (image(2, 4, 5), text(6), 2, 1, 4, False, (2, 7)),
        (image(2, 5, axes="ND"), text(3, 6), 2, 3, 1, False, (2, 3, 7)),
        (image(2, 4, 5), text(2, 6, axes="TD"), 2, 2, 4, False, (2, 2, 7)),
        (image(2, 5, 2, 2, axes="NHWD"), text(3, 6), 2, 3, 10, False, (2, 3, 7)),
        # A stack of one is a stack, and one image in a stack serves a single text.
        (image(4, 5), text(1, 3, 6), 1, 3, 4, False, (1, 3, 7)),
        (image(1, 4, 5), text(3, 6), 1, 3, 4, False, (3, 7)),
        (image(1, 5, axes="ND"), text(3, 6), 1, 3, 1, False, (3, 7)),
        # Maps.
        (image(2, 5, 2, 2, axes="NDHW"), text(2, 3, 6), 2, 3, 4, False, (2, 3, 7)),
        (image(2, 2, 2, 5, axes="NHWD"), text(2, 3, 6), 2, 3, 4, False, (2, 3, 7)),
        # The result has samples first, however the files have them.
        (image(4, 2, 5, axes="PND"), text(3, 2, 6, axes="TND"), 2, 3, 4, False, (2, 3, 7)),
    ],
)
def test_pairs_that_belong_together(image_axes, text_axes, N, T, P, shared, output):
    pair = matched(image_axes, text_axes)
    assert (pair.N, pair.T, pair.P, pair.image_shared) == (N, T, P, shared)
    assert pair.output_shape(7) == output
    assert len(pair.output_letters) == len(output)
    assert any(f"shared by all {N} text samples" in note for note in pair.notes) is shared


def test_an_image_with_as_many_rows_as_text_samples_is_read_as_samples():
    pair = matched(image(3, 5), text(3, 4, 6))
    assert pair.image.letters == "ND"
    assert "as many rows as text samples (3)" in pair.image.origin


@pytest.mark.parametrize(
    ("image_axes", "text_axes", "sentence"),
    [
        # Next to one row a sample.
        (
            image(4, 5),
            text(2, 3, 6),
            r"the text has 2 samples, the image 4 rows: say --image-axes PD if they are the "
            "tokens of one image for all samples, or give 2 rows",
        ),
        (image(3, 5, axes="ND"), text(2, 3, 6), "the image has 3 samples, the text 2"),
        # Next to equal stacks.
        (
            image(64, 7, 7),
            text(2, 3, 6),
            "the image has 64 samples, the text 2; for one feature map for all samples say "
            "--image-axes DHW",
        ),
        (
            image(7, 7, 64),
            text(2, 3, 6),
            "the image has 7 samples, the text 2; for one feature map for all samples say "
            "--image-axes HWD",
        ),
        (
            image(3, 4, 5),
            text(2, 3, 6),
            r"the image has 3 samples, the text 2, and the text has 3 in its second axis: .* TND$",
        ),
        # The samples are in the second axes.
        (
            image(5, 3, 48),
            text(7, 3, 32),
            "the image has 5 samples, the text 7, and both have 3 in their second axis: if that "
            "is the axis of samples .*, say --text-axes TND --image-axes PND",
        ),
        (
            image(3, 5, 48),
            text(15, 7, 32),
            "the image has 3 samples, the text 15: for 5 texts of each image, list every pair in "
            "a manifest with the columns image,image_row,text,text_row",
        ),
        (
            image(3, 5, 2, 2, axes="NDHW"),
            text(2, 3, 6),
            r"the image has 3 samples, the text 2, and the text has 3 in its second axis: .* TND$",
        ),
        # Next to one text.
        (
            image(3, 4, 5),
            text(3, 6),
            "the image has 3 samples, the text one, of as many rows: say --text-axes ND if each "
            "text row is a sample, or --text-axes TD if they are the tokens of one text",
        ),
        (image(2, 5, axes="ND"), text(2, 6), "the image has 2 samples, the text one"),
        (image(64, 7, 7), text(3, 6), "the text one: say --image-axes DHW for one feature map"),
        (image(7, 7, 64), text(3, 6), "the text one: say --image-axes HWD for one feature map"),
        (image(5, 1, 48), text(7, 32), "say --image-axes PND for 5 tokens of one image"),
        # Next to per-sample vectors on both sides.
        (image(2, 5, axes="ND"), text(3, 6, axes="ND"), "the image has 2 samples, the text 3"),
    ],
)
def test_pairs_that_do_not_belong_together(image_axes, text_axes, sentence):
    with pytest.raises(ShapeError, match=sentence) as caught:
        matched(image_axes, text_axes)
    said = str(caught.value)
    assert f"img.npy {list(image_axes.shape)} and txt.npy {list(text_axes.shape)}" in said


@pytest.mark.parametrize(
    ("axes", "N", "allowed"),
    [
        (text(3, 6), 1, [(1, 3), (3,)]),
        (text(2, 3, 6), 2, [(2, 3), (3,)]),
        (image(4, 5), 1, [(1, 4), (4,)]),
        (image(4, 5, axes="PD"), 2, [(2, 4), (4,)]),
        (image(2, 4, 5), 2, [(2, 4), (4,)]),
        (image(5, 2, 3, axes="DHW"), 1, [(1, 6), (1, 2, 3), (6,), (2, 3)]),
        (image(2, 5, 2, 3, axes="NDHW"), 2, [(2, 6), (2, 2, 3), (6,), (2, 3)]),
        (image(2, 5, axes="ND"), 2, [(2, 1), (2,), (1,)]),
        (image(5), 1, [(1, 1), (1,)]),
        # A map's mask is rows by columns, whatever the order of the file's axes.
        (image(4, 2, 5, axes="PND"), 2, [(2, 4), (4,)]),
    ],
)
def test_the_shapes_a_mask_may_have(axes, N, allowed):
    assert sorted(mask_shapes(axes, N)) == sorted(allowed)


letters_of = {
    "image": ["D", "PD", "ND", "NPD", "DHW", "HWD", "NDHW", "NHWD"],
    "text": ["D", "TD", "ND", "NTD"],
}
orders = st.one_of(
    *(
        st.tuples(st.just(side), st.sampled_from(letters), st.randoms(use_true_random=False))
        for side, letters in letters_of.items()
    )
)
sizes = st.fixed_dictionaries({c: st.integers(1, 4) for c in "NPTHWD"})


def shuffled(letters, random):
    mixed = list(letters)
    random.shuffle(mixed)
    return "".join(mixed)


@pytest.mark.slow
@many
@given(drawn=orders, size=sizes)
def test_the_order_brings_tokens_row_by_row_before_features(drawn, size):
    side, letters, random = drawn
    named = shuffled(letters, random)
    axes = read_axes(side, tuple(size[c] for c in named), named, "file")
    # Each number says where it lies: in which sample, row, column or token, and feature.
    grid = np.zeros(axes.shape, int)
    place = {"N": 10**6, "H": size["W"] * 10**3, "W": 10**3, "P": 10**3, "T": 10**3, "D": 1}
    for position, letter in enumerate(named):
        along = [1] * len(named)
        along[position] = size[letter]
        grid = grid + place[letter] * np.arange(size[letter]).reshape(along)
    tokens = grid.transpose(axes.order).reshape(-1, axes.tokens, axes.width)
    samples = axes.samples or 1
    expected = [
        [[10**6 * n + 10**3 * p + k for k in range(axes.width)] for p in range(axes.tokens)]
        for n in range(samples)
    ]
    assert tokens.tolist() == expected


@pytest.mark.slow
@many
@given(
    image_letters=st.sampled_from(letters_of["image"]),
    text_letters=st.sampled_from(letters_of["text"]),
    size=sizes,
    width=st.integers(1, 9),
)
def test_the_output_is_the_text_with_the_module_s_width(image_letters, text_letters, size, width):
    axes = (
        read_axes(side, tuple(size[c] for c in letters), letters, side)
        for side, letters in (("image", image_letters), ("text", text_letters))
    )
    image_axes, text_axes = axes
    # Both have N samples, or one of them has none and is shared by all of the other.
    pair = matched(image_axes, text_axes)
    images = image_axes.samples or 1
    shared = text_axes.samples is None and images > 1
    assert pair.text_shared is shared
    assert pair.output_shape(width) == (*([images] if shared else []), *text_axes.shape[:-1], width)
    assert pair.output_letters == ("N" if shared else "") + text_letters
    assert (images if shared else text_axes.samples or 1) == pair.N
    assert np.prod(pair.output_shape(width)) == pair.N * pair.T * width


@many
@given(
    side=st.sampled_from(["image", "text"]),
    letters=st.one_of(
        st.text("NPTHWDX", max_size=5),
        st.permutations("NPD").map("".join),
        st.permutations("NDHW").map("".join),
    ),
)
def test_any_naming_is_read_or_refused_in_words(side, letters):
    shape = tuple(range(2, 2 + len(letters)))
    valid = sorted(letters) in [sorted(known) for known in letters_of[side]]
    if valid:
        assert read_axes(side, shape, letters, "file").letters == letters
        return
    with pytest.raises(UsageError) as caught:
        read_axes(side, shape, letters, "file")
    assert f"--{side}-axes {letters}: " in str(caught.value)
