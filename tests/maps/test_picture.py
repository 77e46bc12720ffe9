"""Pictures of attention: nothing overlaps, nothing is cut off, the same bytes every time."""

import dataclasses
import io
import itertools
import re
import struct
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from fusecli.errors import FuseError
from fusecli.maps import text_layout as lettering
from fusecli.maps.photo import read_photo_and_size
from fusecli.maps.picture import _Page, _round_steps, draw
from fusecli.maps.selection import Grid
from fusecli.maps.text_layout import Lettering
from tests.maps.views import make

SAMPLES = Path(__file__).parents[2] / "sample_features"


def read_photo(path):
    return read_photo_and_size(path)[0]


def layout(view):
    """Boxes of the texts and of the axes, in pixels, and the size of the page."""
    figure = _Page(view).figure()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text().strip()]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    axes = [one.get_window_extent() for one in figure.axes]
    return texts, boxes, axes, figure.bbox


def area(a, b):
    wide = min(a.x1, b.x1) - max(a.x0, b.x0)
    high = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(wide, 0) * max(high, 0)


PHOTO = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)


@pytest.mark.parametrize("T", [1, 2, 5, 29, 77])
@pytest.mark.parametrize(
    ("P", "grid", "photo"),
    [
        (1, None, None),
        (2, None, None),
        (49, None, None),
        (49, "none", None),
        (50, None, PHOTO),
        (197, "none", None),
        (577, None, None),
        (577, "none", None),
        (60, "2x30", None),
        (60, "60x1", None),
        (48, "6x8", PHOTO[:30]),
    ],
    ids=str,
)
def test_no_text_overlaps_another_or_a_map_or_leaves_the_page(T, P, grid, photo):
    texts, boxes, axes, page = layout(make(T, P, grid, photo=photo))
    assert len(texts) > T * 0.8
    # A hair of a pixel is the rounding of the font's hinting.
    for (one, a), (other, b) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        assert area(a, b) < 3, (one.get_text(), other.get_text())
    for text, box in zip(texts, boxes, strict=True):
        assert page.x0 <= box.x0, text.get_text()
        assert box.x1 <= page.x1, text.get_text()
        assert page.y0 <= box.y0, text.get_text()
        assert box.y1 <= page.y1, text.get_text()
        for one in axes:
            assert area(box, one) < 3, text.get_text()
    for a, b in itertools.combinations(axes, 2):
        assert area(a, b) == 0


@pytest.mark.slow
def test_where_rows_are_thinner_than_text_as_many_are_named_as_fit():
    texts, boxes, _, _ = layout(make(400, 30, "none", words=["word"]))
    named = [text for text in texts if text.get_text() == "word"]
    assert 80 < len(named) < 200
    for a, b in itertools.pairwise(boxes[: len(named)]):
        assert area(a, b) < 3


def test_cells_have_the_colour_of_their_weight_and_padding_has_none():
    real = np.ones(9, bool)
    real[4] = False
    view = make(2, 9, "3x3", real=real)
    figure = _Page(view).figure()
    cells = figure.axes[1].images[0].get_array()  # [3, 3, 4]
    shares = np.sqrt(view.times[1].reshape(3, 3) / max(4, np.nanmax(view.times)))
    wanted = matplotlib.colormaps["cividis"](np.nan_to_num(shares))
    assert cells[1, 1, 3] == 0
    known = np.isfinite(shares)
    np.testing.assert_allclose(cells[known], wanted[known])
    assert (cells[known][:, 3] == 1).all()


@pytest.mark.parametrize("top", [4, 4.2, 6.67, 9.42, 62.3, 137.2, 1234])
def test_both_ends_of_the_scale_have_their_numbers_and_no_gap_is_wide(top):
    view = dataclasses.replace(make(1, 3, "none"), times=np.array([[0.0, 1.0, top]]))
    texts, boxes, _, _ = layout(view)
    ticks = {text.get_text(): box for text, box in zip(texts, boxes, strict=True)}
    ticks = {text: box for text, box in ticks.items() if re.fullmatch(r"[\d.,]+×", text)}
    assert "0×" in ticks
    assert {4: "4×", 4.2: "4.20×", 62.3: "62×", 137.2: "137×", 1234: "1,234×"}.get(
        top, f"{top}×"
    ) in ticks
    at = sorted((box.x0 + box.x1) / 2 for box in ticks.values())
    assert max(np.diff(at)) < 0.35 * (at[-1] - at[0])


@pytest.mark.parametrize("grid", ["3x3", "none", Grid(2, 4, 1)])
def test_without_a_weight_to_draw_there_is_no_scale(grid):
    real = np.zeros(9, bool)
    if isinstance(grid, Grid):
        real[0] = True  # the class token, which has no place
    texts, _, axes, _ = layout(make(2, 9, grid, real=real))
    said = " ".join(text.get_text() for text in texts)
    assert "×" not in said
    assert "uniform" not in said.replace("times uniform", "")
    assert "hatched" in said
    assert len(axes) == (1 if grid == "none" else 2)


@pytest.mark.slow
def test_uniform_attention_is_one_flat_colour():
    figure = _Page(make(3, 49, sharp=False)).figure()
    for axes in figure.axes[:3]:
        cells = axes.images[0].get_array()
        assert np.ptp(cells.reshape(-1, 4), axis=0).max() < 1e-6


def test_a_photo_lies_under_every_map_and_is_shown_once_as_it_is():
    photo = np.zeros((40, 40, 3), np.uint8)
    photo[:, 20:] = (250, 10, 10)
    figure = _Page(make(3, 4, "2x2", sharp=False, photo=photo)).figure()
    shown = figure.axes[0].images[0].get_array()
    assert tuple(shown[5, -5]) == (250, 10, 10)
    cells = figure.axes[1].images[0].get_array()
    # Uniform attention: what differs is the photo.
    assert cells[5, 5, :3].sum() < cells[5, -5, :3].sum()


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_the_same_view_gives_the_same_bytes_whatever_matplotlib_is_set_to(ending):
    view = make(5, 50, photo=PHOTO)
    first = draw(view, ending)
    with matplotlib.rc_context({"font.size": 30, "savefig.bbox": "tight", "image.cmap": "jet"}):
        before = dict(matplotlib.rcParams)
        assert draw(view, ending) == first
        assert dict(matplotlib.rcParams) == before
    for mark in (b"matplotlib v", b"Matplotlib v", b"CreationDate", b"<dc:date>"):
        assert mark not in first
    heads = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert first.startswith(heads[ending])


@pytest.mark.slow
def test_drawing_does_not_import_pyplot():
    code = (
        "import sys, numpy as np\n"
        "from fusecli.maps.picture import draw\n"
        "from tests.maps.views import make\n"
        "draw(make(3, 9), '.png')\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_index_labels_are_round():
    assert list(_round_steps(48, 7)) == [0, 10, 20, 30, 40]
    assert list(_round_steps(0, 1)) == [0]
    assert list(_round_steps(3, 10)) == [0, 1, 2, 3]
    assert len(_round_steps(4095, 16)) <= 17


# --- letters ---------------------------------------------------------------------------------


def test_characters_that_no_font_has_become_their_code_points():
    letters = Lettering(8)
    assert letters.safe("naïve ##ing") == "naïve ##ing"
    assert letters.safe("猫") == "\\u732b"
    assert letters.safe("\ud800") == "\\ud800"


def test_an_installed_font_that_has_them_is_used(monkeypatch):
    lacking = "\U0001d4d0"  # in STIX, which matplotlib brings too, and not in its first font
    assert Lettering(8).safe(lacking) == "\\U0001d4d0"
    monkeypatch.setattr(lettering, "FALLBACKS", ("STIXGeneral", "No Such Font"))
    assert Lettering(8).safe(lacking) == lacking


def test_text_is_shortened_to_its_room_and_no_further():
    letters = Lettering(8)
    assert letters.fitted("short", 1) == "short"
    cut = letters.fitted("w" * 100, 1)
    assert cut.endswith("…")
    assert letters.width(cut) <= 1
    assert letters.width("w" + cut) > 1
    lines = letters.wrapped("one two " * 20 + "x" * 300, 2)
    assert all(letters.width(line) <= 2 for line in lines)
    assert " ".join(lines).startswith("one two one two")


# --- photos ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "name"),
    [("RGB", "p.jpg"), ("L", "p.jpg"), ("RGBA", "p.png"), ("P", "p.gif"), ("I;16", "p.png"),
     ("1", "p.bmp"), ("CMYK", "p.jpg"), ("RGB", "p.webp"), ("I;16", "p.tiff")],
)  # fmt: skip
def test_photos_of_every_kind_become_small_rgb(tmp_path, mode, name):
    path = tmp_path / name
    Image.new(mode, (3000, 1500)).save(path)
    photo = read_photo(str(path))
    assert photo.dtype == np.uint8
    assert photo.shape == (512, 1024, 3)


@pytest.mark.parametrize("name", ["p.png", "p.tiff"])
def test_grey_of_16_bits_keeps_its_shades(tmp_path, name):
    path = tmp_path / name
    shades = np.repeat(np.arange(0, 65536, 1024, dtype=np.uint16)[None], 8, axis=0)
    Image.fromarray(shades).save(path)
    photo = read_photo(str(path))
    assert np.array_equal(photo, np.repeat(shades[..., None] // 256, 3, axis=2))


@pytest.mark.parametrize(("kind", "said"), [("i4", "whole numbers of 32"), ("f4", "float numbers")])
def test_a_picture_of_numbers_without_a_white_is_refused(tmp_path, kind, said):
    path = tmp_path / "p.tiff"
    Image.fromarray(np.ones((8, 8), kind)).save(path)
    with pytest.raises(FuseError, match=f"p.tiff: holds {said}.*, of which none is white: save it"):
        read_photo(str(path))


def test_a_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    path = tmp_path / "p.jpg"
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert read_photo(str(path)).shape == (40, 20, 3)


def png_of(w, h):
    """A PNG whose header claims a size, and that holds nothing."""

    def chunk(kind, data):
        import zlib

        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def cut_jpeg():
    sink = io.BytesIO()
    Image.fromarray(PHOTO).save(sink, "JPEG")
    return sink.getvalue()[:400]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no picture that fusecli reads (JPEG, PNG"),
        (b"hello", "is no picture that fusecli reads"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "is no picture that fusecli reads"),
        (cut_jpeg(), "is a damaged picture"),
        (png_of(11_000, 11_000), "at most 100,000,000 are read"),
        (png_of(2**30, 2**30), "more than 100,000,000 pixels"),
        (png_of(50, 50), "is a damaged picture"),
    ],
    ids=["empty", "text", "postscript", "cut", "large", "bomb", "hollow"],
)
def test_a_file_that_is_no_sound_photo_is_refused_in_one_line(tmp_path, content, says):
    path = tmp_path / "p.jpg"
    path.write_bytes(content)
    with pytest.raises(FuseError) as refused:
        read_photo(str(path))
    assert says in str(refused.value)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "says"), [("none.jpg", "no such file"), (".", "is a directory")])
def test_a_photo_that_is_not_there_is_said(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FuseError, match=says):
        read_photo(name)


# --- from the command line ---------------------------------------------------------------------


def sample(name):
    return str(SAMPLES / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["astronaut", "cat", "coffee", "rocket"])
def test_the_sample_pairs_are_drawn_with_their_words(folder, cli, name):
    pair = sample(f"{name}.image.npy"), sample(f"{name}.text.npy")
    words = sample("tokens.json")
    done = cli("fuse", *pair, "--plot", "a.png", "--tokens", words, "-q")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{name}.text.fused.npy\n"
    with Image.open("a.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 800


def test_without_matplotlib_the_extra_is_named_before_any_work(folder, cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    pair = sample("cat.image.npy"), sample("cat.text.npy")
    done = cli("fuse", *pair, "--plot", "a.png")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "pip install '.[plot]' in a clone of fusecli" in done.err
    assert list(folder.iterdir()) == []
    assert cli("fuse", *pair, "--show", "--attention", "m.npy", "-q").code == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--image-file", "none.jpg"], "none.jpg: no such file"),
        (["--tokens", sample("tokens.json") + ":dog"], "has nothing called 'dog'"),
        (["--tokens", sample("tokens.json") + ":rocket"], "names 22 tokens, the text has 7"),
        (["--grid", "6x9"], "--grid 6x9: 6 x 9 is 54 tokens, the image has 49 (one more may be a"),
        (["--grid", "7x7+1"], "--grid 7x7+1: 7 x 7 + 1 is 50 tokens, the image has 49\n"),
        (["--sample", "1"], "--sample 1: the files hold 1 pair, counted"),
    ],
)
def test_wrong_input_for_a_picture_is_one_line_and_leaves_nothing(folder, cli, options, says):
    pair = sample("cat.image.npy"), sample("cat.text.npy")
    done = cli("fuse", *pair, "--plot", "a.png", *options)
    assert done.code in (1, 2)
    assert done.err.count("\n") == 1
    assert says in done.err
    assert list(folder.iterdir()) == []


def test_under_hatching_the_photo_shows():
    photo = np.linspace(0, 255, 40 * 40 * 3).reshape(40, 40, 3).astype(np.uint8)
    view = make(3, 4, "2x2", sharp=False, photo=photo)
    view.times[1, 2] = np.nan  # what an attention mask does not allow
    axes = _Page(view).figure().axes
    hatched = [panel for panel in axes if any(patch.get_hatch() for patch in panel.patches)]
    (panel,) = hatched
    grey, cells = panel.images
    assert grey.get_zorder() < panel.patches[0].get_zorder() < cells.get_zorder()
    assert panel.patches[0].get_facecolor()[3] == 0  # the hatching covers nothing
    shown = np.asarray(grey.get_array())
    assert shown.std() > 0.05
    assert (shown[..., 0] == shown[..., 1]).all()
    alpha = np.asarray(cells.get_array())[..., 3]
    h, w = alpha.shape
    assert (alpha[h // 2 :, : w // 2] == 0).all()
    assert (alpha[: h // 2] == 1).all()
