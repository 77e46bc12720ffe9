"""Regions are drawn where their boxes are, however the boxes are stored."""

import json

import numpy as np
import pytest
from PIL import Image

from fusecli.errors import FuseError
from fusecli.features.file import open_features
from fusecli.maps.boxes import Boxes, boxes_of
from fusecli.maps.photo import read_photo_and_size
from fusecli.maps.picture import _Page
from fusecli.maps.selection import Drawing
from fusecli.maps.view import view_of
from fusecli.maps.writer import MapOptions

W, H = 640, 400
# Left, top, right, bottom as shares of the image's size.
PLACES = np.array([[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 1, 1], [0, 0, 1, 1], [0.7, 0.1, 0.8, 0.9]])
PIXELS = PLACES * [W, H, W, H]


def as_xywh(places):
    x0, y0, x1, y1 = places.T
    return np.stack([x0, y0, x1 - x0, y1 - y0], 1)


def as_centres(places):
    x0, y0, x1, y1 = places.T
    return np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1)


def read(tensors, photo=(W, H), real=None, sample=0, **options):
    np.savez("image.npz", features=np.ones((4, 8), np.float32), **tensors)
    real = np.ones(4, bool) if real is None else np.array(real)
    with open_features("image.npz") as file:
        return boxes_of(MapOptions(plot="p.png", **options), file, sample, real, photo)


@pytest.mark.parametrize("name", ["boxes", "bbox", "normalized_boxes", "norm_bb", "image_boxes"])
def test_boxes_beside_the_features_are_found_by_their_usual_names(folder, name):
    found = read({name: PLACES.astype(np.float32)})
    assert np.allclose(found.places, PLACES, atol=1e-6)
    assert found.beside == name


@pytest.mark.parametrize("name", ["roi_boxes", "det/pred_bbox", "proposals", "obj-boxes"])
def test_other_names_are_those_of_boxes_if_there_is_one_for_each_token(folder, name):
    found = read({name: PLACES, "gt_boxes": PLACES[:2]})
    assert np.allclose(found.places, PLACES, atol=1e-6)
    assert found.beside == name
    assert read({name: PLACES[:3]}) is None
    assert read({name: PLACES, "gt_boxes": PLACES[::-1]}) is None  # which of the two?


@pytest.mark.slow
@pytest.mark.parametrize("name", ["boxes", "roi_boxes", "proposals", "pred_xyxy"])
def test_a_picture_uses_the_boxes_beside_the_features_under_any_name(folder, cli, name):
    np.savez("image.npz", features=np.ones((4, 8), np.float32), **{name: PLACES})
    np.save("text.npy", np.ones((3, 8), np.float32))
    base = ("fuse", "image.npz", "text.npy", "-o", "out.npy", "-f", "--heads", "2")
    done = cli(*base, "--plot", "p.svg")
    assert done.code == 0, done.err
    assert f"{name} [4, 4] is the regions' boxes" in done.err
    assert f"regions: image.npz[{name}], read as left, top, right, bottom" in done.err
    done = cli(*base, "--plot", "p.svg", "--boxes", "none")
    assert f"not used: {name} [4, 4]" in done.err


def test_boxes_that_end_in_a_part_of_the_photo_say_so(folder):
    many = np.concatenate([PIXELS, PIXELS])
    many_real = np.ones(8, bool)
    np.savez("image.npz", features=np.ones((8, 8), np.float32), boxes=many)
    for photo, said in (((W, H), False), ((2 * W, 2 * H), True)):
        with open_features("image.npz") as file:
            found = boxes_of(MapOptions(plot="p.png"), file, 0, many_real, photo)
        assert ("end at 50% of it: if they were made on a smaller photo" in found.how) is said
        assert np.allclose(found.places[0], PIXELS[0] / [*photo, *photo])


@pytest.mark.parametrize(
    ("stored", "options"),
    [
        (PLACES, {}),
        (PIXELS, {}),
        (as_xywh(PIXELS), {}),
        (as_xywh(PLACES), {"box_format": "xywh"}),
        (as_centres(PLACES), {"box_format": "cxcywh"}),
        (as_centres(PIXELS), {"box_format": "cxcywh", "box_units": "pixels"}),
        (PLACES[:, [1, 0, 3, 2]], {"box_format": "yxyx"}),
        (np.concatenate([PLACES, np.ones((4, 3))], 1), {}),  # with width, height and area
        (np.stack([PIXELS]), {}),
        (np.stack([PIXELS[::-1], PIXELS]), {"sample": 1}),
    ],
)
def test_every_form_gives_the_same_places(folder, stored, options):
    found = read({"boxes": stored}, **options)
    assert np.allclose(found.places, PLACES, atol=1e-6)
    assert found.aspect == pytest.approx(W / H) or stored.max() <= 1


def test_boxes_of_a_larger_copy_of_the_photo_go_by_the_size_beside_them(folder):
    tensors = {"boxes": PIXELS * 2, "image_w": np.array(2 * W), "image_h": np.array(2 * H)}
    assert np.allclose(read(tensors).places, PLACES)
    with pytest.raises(FuseError, match="boxes are of an image of 1280 x 800 pixels"):
        read(tensors, photo=(H, W))


def test_padded_tokens_need_no_box(folder):
    stored = PIXELS.copy()
    stored[3] = np.nan
    found = read({"boxes": stored}, real=[True, True, True, False])
    assert np.allclose(found.places[:3], PLACES[:3])
    assert np.isnan(found.places[3]).all()
    with pytest.raises(FuseError, match="not finite"):
        read({"boxes": stored})


@pytest.mark.parametrize(
    ("tensors", "options", "says"),
    [
        ({"boxes": PIXELS[:3]}, {}, r"boxes have shape \[3, 4\], expected \[4, 4\]"),
        ({"boxes": PIXELS * 3}, {}, "are no boxes inside 640 x 400"),
        ({"boxes": PIXELS}, {"box_format": "xywh"}, "as --box-format xywh"),
        ({"norm_boxes": PIXELS}, {}, "is named as normalized boxes and has coordinates up to 640"),
        (
            {"boxes": np.array([[0.5, 0.5, 0.2, 0.2]] * 4)},
            {},
            "say --box-format xywh or --box-format cxcywh",
        ),
        ({}, {"boxes": "image.npz:nothing"}, "has no tensor 'nothing'"),
        ({}, {"boxes": "image.npz:features"}, r"boxes have shape \[4, 8\]"),
    ],
)
def test_boxes_that_cannot_be_meant_are_refused(folder, tensors, options, says):
    with pytest.raises(FuseError, match=says):
        read(tensors, **options)


def test_a_form_that_is_not_certain_is_called_assumed(folder):
    small = np.array([[0.1, 0.1, 0.3, 0.3]] * 4)
    assert "assumed" in read({"boxes": small}).how
    assert "assumed" not in read({"boxes": PLACES}).how


def test_none_ignores_them(folder):
    assert read({"boxes": PIXELS}, boxes="none") is None
    assert read({}) is None


def test_a_pixel_has_the_largest_weight_of_the_regions_over_it():
    boxes = Boxes(np.array([[0, 0, 0.5, 1], [0.25, 0, 0.75, 0.5], [0.3, 0.3, 0.3, 0.3]]), 1.0, "")
    painted = boxes.painted(np.array([2.0, 3.0, np.nan]), 4, 2)
    nan = np.nan
    assert np.array_equal(painted, [[2, 3, 3, nan], [2, 2, nan, nan]], equal_nan=True)
    assert Boxes(boxes.places, 1.0, "").painted(np.array([1.0, 1, 5]), 10, 10)[3, 3] == 5


def test_the_size_is_that_of_the_upright_photo_before_it_is_made_small(folder):
    image = Image.new("RGB", (3000, 2000))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save("turned.jpg", exif=exif)
    photo, size = read_photo_and_size("turned.jpg")
    assert size == (2000, 3000)
    assert photo.shape[1] < photo.shape[0] <= 1024


@pytest.fixture
def regions(folder):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((4, 8)).astype(np.float32)
    np.savez("regions.npz", features=features, bbox=PIXELS.astype(np.float32))
    np.save("image.npy", features)
    np.save("text.npy", rng.standard_normal((3, 8)).astype(np.float32))
    Image.new("RGB", (W, H), (90, 120, 200)).save("photo.png")


@pytest.mark.slow
def test_a_square_number_of_regions_is_drawn_by_the_boxes_and_said(regions, cli):
    done = cli("fuse", "regions.npz", "text.npy", "--plot", "a.svg", "--image-file", "photo.png")
    assert done.code == 0
    assert "regions: regions.npz[bbox], read as left, top, right, bottom" in done.err
    assert "guessed" not in done.err
    assert "bbox [4, 4] is the regions' boxes" in done.err
    assert "not used" not in done.err


def test_the_colour_at_a_place_is_that_of_its_region():
    boxes = Boxes(np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0.5, 0.1, 1]]), 2.0, "as said")
    weights = np.array([[[0.1, 0.6, 0.3]]], np.float32)
    real = np.ones(3, bool)
    plan = Drawing(0, ["a"], np.arange(1), real, None, None, None, boxes)
    view = view_of(weights, plan, ("image.npy", "text.npy"), 1, False, None)
    page = _Page(view)
    (shown,) = [axes.images[0] for axes in page.figure().axes if axes.collections]
    cells = shown.get_array()  # [h, w, 4]
    h, w = cells.shape[:2]
    assert w / h == pytest.approx(2, rel=0.02)
    for x, y, weight in [(0.25, 0.25, 0.1), (0.75, 0.75, 0.6), (0.05, 0.75, 0.3)]:
        wanted = page.painter.colours(page.scale.share(np.array(weight * 3)))
        assert np.allclose(cells[int(y * h), int(x * w)], wanted, atol=1e-5)
    assert cells[int(0.25 * h), int(0.75 * w), 3] == 0  # no region
    assert "Regions: as said." in view.places


@pytest.mark.slow
def test_a_guessed_grid_under_a_photo_is_a_diagnosis(regions, cli):
    base = "fuse", "image.npy", "text.npy", "--image-file", "photo.png", "--plot", "a.png"
    done = cli(*base, "--report", "r.json")
    assert done.code == 0
    assert "warning: photo.png lies under a grid of 2x2 that is guessed" in done.err
    with open("r.json", encoding="utf-8") as file:
        assert "grid-guessed" in [one["code"] for one in json.load(file)["diagnoses"]]
    assert cli(*base, "--force", "--strict").code == 1
    done = cli(*base, "--force", "--grid", "2x2")
    assert done.code == 0
    assert "guessed" not in done.err
    done = cli("fuse", "image.npy", "text.npy", "--plot", "b.png", "--force")
    assert done.code == 0
    assert "warning: photo" not in done.err


def test_boxes_and_grid_exclude_each_other_and_boxes_are_never_replaced(regions, cli):
    args = "--plot", "a.png", "--boxes", "regions.npz"
    done = cli("fuse", "image.npy", "text.npy", *args, "--grid", "2x2")
    assert done.code == 2
    assert "leave one out" in done.err
    done = cli("fuse", "image.npy", "text.npy", *args, "-o", "regions.npz", "--force")
    assert done.code != 0
    assert "regions.npz" in done.err
    with np.load("regions.npz") as kept:
        assert sorted(kept.files) == ["bbox", "features"]
