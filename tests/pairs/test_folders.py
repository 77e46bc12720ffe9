"""Pairs of two folders: matched by place and name, in one order, with the lonely counted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusecli.errors import FuseError, PairsError, UsageError
from fusecli.pairs.open import PairOptions, PairSource, open_pairs
from tests.conftest import without_privileges


def touch(*paths: str) -> None:
    """Empty files: listing does not open any."""
    for path in paths:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        Path(path).touch()


def opened(images: str = "images", texts: str | None = "texts", **options: object) -> PairSource:
    return open_pairs(PairOptions(images, texts, **options))


def ids(source: PairSource) -> list[str]:
    found = [pair.id for pair in source]
    assert len(found) == source.total
    assert found == [pair.id for pair in source], "a second pass gives the same"
    return found


def files(source: PairSource) -> list[tuple[str, str]]:
    return [(pair.image.file, pair.text.file) for pair in source]


def test_files_are_matched_by_relative_path_without_the_ending(folder: Path) -> None:
    touch("images/b.npz", "images/a/0001.npy", "images/a/0002.PT", "images/a.pth")
    touch("texts/a/0001.safetensors", "texts/a/0002.npy", "texts/a.npy", "texts/b.NPY")
    source = opened()
    assert ids(source) == ["a", "a/0001", "a/0002", "b"]
    assert files(source)[1] == ("images/a/0001.npy", "texts/a/0001.safetensors")
    assert source.unmatched.total == 0
    assert source.unmatched.first == []
    pair = next(iter(source))
    assert (pair.image.key, pair.image_mask, pair.text_mask, pair.output) == (None,) * 4


def test_what_is_no_feature_file_or_hidden_is_passed_over(folder: Path) -> None:
    touch("images/a.npy", "images/a.jpg", "images/notes.txt", "images/noending", "images/.b.npy")
    touch("images/.fusecli-0123456789abcdef.part", "images/.cache/c.npy", "images/.DS_Store")
    touch("texts/a.npy", "texts/.c.npy", "texts/~a.npy~")
    source = opened()
    assert ids(source) == ["a"]
    assert source.unmatched.total == 0


def test_what_has_no_partner_is_counted_and_the_first_named(folder: Path) -> None:
    touch(
        *(f"images/{n:02}.npy" for n in range(20)), "texts/00.npy", "texts/z/1.npy", "texts/0.npy"
    )
    source = opened()
    assert ids(source) == ["00"]
    assert source.unmatched.counts == {"image": 19, "text": 2}
    assert source.unmatched.first == [
        ("text", "texts/0.npy"),
        *(("image", f"images/{n:02}.npy") for n in range(1, 6)),
        ("text", "texts/z/1.npy"),
    ]
    assert str(source.unmatched) == (
        "2 texts and 19 images without a partner: text texts/0.npy, image images/01.npy, image "
        "images/02.npy, image images/03.npy, image images/04.npy, image images/05.npy, "
        "text texts/z/1.npy, ..."
    )


def test_strict_pairs_makes_it_an_error(folder: Path) -> None:
    touch("images/a.npy", "images/b.npy", "texts/a.npy")
    with pytest.raises(PairsError) as refused:
        opened(strict_pairs=True)
    assert str(refused.value) == "--strict-pairs: 1 image without a partner: image images/b.npy"
    touch("texts/b.npy")
    assert ids(opened(strict_pairs=True)) == ["a", "b"]


def test_no_pair_at_all_is_an_error_that_shows_what_there_was(folder: Path) -> None:
    touch("images/a_img.npy", "texts/a_txt.npy")
    with pytest.raises(PairsError, match=r"no pairs: 1 image and 1 text .*image images/a_img.npy"):
        opened()
    os.makedirs("none")
    os.makedirs("nothing")
    with pytest.raises(
        PairsError, match=r"there are no feature files \(\.npy.* in none and nothing"
    ):
        opened("none", "nothing")


def make(tree: dict[str, list[str]]) -> None:
    for root, names in tree.items():
        touch(*(f"{root}/{name}" for name in names))


@pytest.mark.parametrize(
    ("image_pattern", "text_pattern", "images", "texts", "expected"),
    [
        ("{id}_img", None, ["1_img.npy", "a/2_img.npy"], ["1.npy", "a/2.npy"], ["1", "a/2"]),
        ("{id}_img", "{id}.txt", ["1_img.npy"], ["1.txt.npy"], ["1"]),
        ("img_{id}", "{id}", ["b/img_1.npy", "img_2.npy"], ["b/1.npy", "2.npy"], ["2", "b/1"]),
        ("{id}.npy", "{id}.npz", ["1.npy", "1.npz"], ["1.npz", "1.npy"], ["1"]),
        ("{id}/image", "{id}/text", ["1/image.npy", "a/2/image.npz"],
         ["1/text.npy", "a/2/text.npy"], ["1", "a/2"]),
        ("{id}/image.npy", "{id}", ["1/image.npy", "1/image.npz"], ["1.npy"], ["1"]),
        ("{id}_x/deep/image", "{id}", ["a_x/deep/image.npy", "a/b_x/deep/image.npy"],
         ["a.npy", "a/b.npy"], ["a", "a/b"]),
        ("img/{id}", "txt/{id}", ["img/1.npy", "img/c/d/2.npy"], ["txt/1.npy", "txt/c/d/2.npy"],
         ["1", "c/d/2"]),
        ("img/i_{id}_x", "{id}", ["img/i_1_x.npy", "img/i_c/d_x.npy"], ["1.npy", "c/d.npy"],
         ["1", "c/d"]),
        # The order of ids is not that of names: `a_img` comes after `a0_img`.
        ("{id}_img", None, ["a_img.npy", "a0_img.npy", "a_img/b_img.npy"],
         ["a.npy", "a0.npy", "a_img/b.npy"], ["a", "a0", "a_img/b"]),
    ],
)  # fmt: skip
def test_patterns_say_what_of_a_name_is_the_id(
    folder: Path,
    image_pattern: str,
    text_pattern: str | None,
    images: list[str],
    texts: list[str],
    expected: list[str],
) -> None:
    make({"images": images, "texts": texts})
    source = opened(image_pattern=image_pattern, text_pattern=text_pattern)
    assert sorted(ids(source)) == sorted(expected)
    make({"both": [*images, *texts]})
    if image_pattern != text_pattern and text_pattern not in (None, "{id}"):
        both = opened("both", None, image_pattern=image_pattern, text_pattern=text_pattern)
        assert ids(both) == ids(source)
        assert both.unmatched.total == 0


def test_file_that_fits_no_pattern_is_counted(folder: Path) -> None:
    touch("both/a_img.npy", "both/a_txt.npy", "both/odd.npy", "both/odd.json")
    source = opened("both", None, image_pattern="{id}_img", text_pattern="{id}_txt")
    assert ids(source) == ["a"]
    assert source.unmatched.first == [("file", "both/odd.npy")]
    touch("texts/a_txt.npy", "texts/c.npy", "texts/b.npy")
    source = opened("both", image_pattern="{id}_img", text_pattern="{id}_txt")
    assert source.unmatched.first == [
        *(("image", f"both/{name}.npy") for name in ("a_txt", "odd")),
        *(("text", f"texts/{name}.npy") for name in ("b", "c")),
    ]


def test_two_files_of_one_id_are_refused_by_name(folder: Path) -> None:
    touch("images/a.npy", "images/a.safetensors", "texts/a.npy")
    with pytest.raises(PairsError) as refused:
        opened()
    assert str(refused.value) == (
        "images/a.safetensors: is the image of 'a', and so is images/a.npy: keep one of them"
    )
    assert ids(opened(image_pattern="{id}.npy")) == ["a"]


@pytest.mark.parametrize("one", ["A", "e\u0301", "dir/x"])
@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
def test_ids_that_differ_by_case_or_form_only_are_refused(
    folder: Path, one: str, ending: str
) -> None:
    other = {"A": "a", "e\u0301": "\u00e9", "dir/x": "DIR/x"}[one]
    for root in ("images", "texts"):
        touch(f"{root}/{one}.npy", f"{root}/m.npy", f"{root}/{other}.npy")
    if len(os.listdir("images")) < 3 and "/" not in one:
        pytest.skip("this file system holds only one of them")
    with pytest.raises(PairsError, match="would have one output file where") as refused:
        opened(ending=ending)
    assert repr(one) in str(refused.value)
    assert repr(other) in str(refused.value)
    assert len(ids(opened(ending=""))) == 3, "a packed result has no file names"


def test_output_folder_inside_an_input_is_not_looked_into(folder: Path) -> None:
    touch("data/a.npy", "texts/a.npy", "data/fused/b.npy", "texts/fused/b.npy")
    assert ids(opened("data")) == ["a", "fused/b"]
    source = opened("data", output="data/fused")
    assert ids(source) == ["a"]
    assert source.unmatched.first == [("text", "texts/fused/b.npy")]
    os.symlink("data/fused", "elsewhere")
    assert ids(opened("data", output="elsewhere")) == ["a"]
    assert ids(opened("data", output="data/none")) == ["a", "fused/b"]
    for same in ("data", "texts/../texts"):
        with pytest.raises(UsageError, match=r"is both the folder of the .* and the output's"):
            opened("data", output=same)


def test_links_are_followed_and_loops_end(folder: Path) -> None:
    touch("far/x.npy", "far/deep/y.npy", "images/a.npy")
    os.symlink("../far", "images/far")
    os.symlink("../images", "far/deep/back")
    os.symlink(".", "images/self")
    os.symlink("loop.npy", "images/loop.npy")
    os.symlink("nowhere.npy", "images/broken.npy")
    os.symlink("images", "texts")
    source = opened("images", "images/far/../images", image_pattern="{id}", text_pattern="{id}.npy")
    assert ids(source) == ["a", "broken", "far/deep/y", "far/x", "loop"]


def test_links_to_one_folder_are_followed_each(folder: Path) -> None:
    touch("shared/deep/x.npy", "images/a.npy")
    for name in ("b", "c", "deep/d"):
        os.makedirs("images/deep", exist_ok=True)
        os.symlink(os.path.abspath("shared"), f"images/{name}")
    shutil.copytree("images", "texts", symlinks=True)
    assert ids(opened()) == ["a", "b/deep/x", "c/deep/x", "deep/d/deep/x"]


def test_links_that_multiply_are_refused_soon(folder: Path) -> None:
    """Three ways on each of 25 levels are 847,288,609,443 files."""
    level = "images"
    for _ in range(25):
        os.makedirs(f"{level}/x")
        os.symlink("x", f"{level}/y")
        os.symlink("x", f"{level}/z")
        level += "/x"
    touch(f"{level}/a.npy")
    shutil.copytree("images", "texts", symlinks=True)
    with pytest.raises(
        PairsError, match=r"links upon links lead to this folder in more than 1,000"
    ):
        ids(opened())


def test_what_fits_no_pattern_is_counted_once_where_links_lead_back(folder: Path) -> None:
    touch("images/a_x.npy", "images/odd.npy", "texts/a.npy")
    os.symlink(".", "images/self")
    source = opened(image_pattern="{id}_x")
    assert ids(source) == ["a"]
    assert source.unmatched.first == [("image", "images/odd.npy")]


@pytest.mark.slow
def test_deep_folders_do_not_end_the_walk(folder: Path) -> None:
    deep = "/".join(["d"] * 600)
    for root in ("images", "texts"):
        touch(f"{root}/{deep}/x.npy")
    assert ids(opened()) == [f"{deep}/x"]


def test_folder_that_cannot_be_listed_is_an_error(folder: Path) -> None:
    touch("images/a.npy", "images/no/b.npy", "texts/a.npy")
    os.chmod("images/no", 0)
    code = (
        "from fusecli.pairs.open import *\n"
        "try: open_pairs(PairOptions('images', 'texts'))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=without_privileges,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    os.chmod("images/no", 0o700)
    assert done.stdout == "PairsError images/no: cannot be listed: Permission denied\n", done.stderr


@pytest.mark.parametrize(
    ("images", "texts", "kind", "message"),
    [
        ("none", "texts", PairsError, "none: no such file or folder"),
        ("images", "none", PairsError, "none: no such file or folder"),
        ("images/a.npy", "texts", PairsError, "images/a.npy: expected a folder, or a .safetensors"),
        ("images", None, UsageError, "images: is the only folder: tell images from"),
        ("images", "images", UsageError, "images: is the only folder"),
        (None, None, UsageError, "expected a folder of images and one of texts"),
    ],
)  # fmt: skip
def test_sources_that_are_none_are_refused(
    folder: Path, images: str | None, texts: str | None, kind: type[FuseError], message: str
) -> None:
    touch("images/a.npy", "texts/a.npy")
    with pytest.raises(kind) as refused:
        open_pairs(PairOptions(images, texts))
    assert str(refused.value).startswith(message)


def test_names_that_are_not_unicode_are_matched(folder: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    try:
        touch(f"images/{name}.npy", f"texts/{name}.npy")
    except OSError:
        pytest.skip("this file system holds Unicode names only")
    assert ids(opened()) == [name]


NAMES = st.lists(
    st.lists(st.text("ab-_.0é", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join),
    max_size=12,
)


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(images=NAMES, texts=NAMES)
def test_pairs_are_what_both_sides_have_sorted_as_folders_are(
    tmp_path: Path, images: list[str], texts: list[str]
) -> None:
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    trees = []
    for side, names in (("images", images), ("texts", texts)):
        kept = {name for name in names if not any(part.startswith(".") for part in name.split("/"))}
        (root / side).mkdir(parents=True)
        touch(*(f"{root}/{side}/{name}.npy" for name in kept))
        trees.append(kept)
    expected = sorted(trees[0] & trees[1], key=lambda id: id.split("/"))
    if not expected:
        with pytest.raises(PairsError, match="no pairs"):
            opened(f"{root}/images", f"{root}/texts")
        return
    source = opened(f"{root}/images", f"{root}/texts")
    assert ids(source) == expected
    counts = {"image": len(trees[0] - trees[1]), "text": len(trees[1] - trees[0])}
    assert source.unmatched.counts == {side: count for side, count in counts.items() if count}


@pytest.mark.parametrize(
    ("image", "text"), [(".jpg", ".txt"), ("_img", "_txt"), ("-image", ""), ("", ".caption")]
)
def test_names_that_end_differently_match_as_the_error_advises(tmp_path, image, text):
    for folder, end in (("images", image), ("texts", text)):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            (tmp_path / folder / f"{name}{end}.npy").touch()
    folders = str(tmp_path / "images"), str(tmp_path / "texts")
    with pytest.raises(PairsError, match="their names end differently") as caught:
        open_pairs(PairOptions(*folders))
    found = re.search("--image-pattern '(.*)' --text-pattern '(.*)'$", str(caught.value))
    assert found is not None
    patterns = {"image_pattern": found[1], "text_pattern": found[2]}
    assert [pair.id for pair in open_pairs(PairOptions(*folders, **patterns))] == ["a", "b"]
    if image and text:
        with pytest.raises(PairsError, match="--image-pattern is given and --text-pattern is not"):
            open_pairs(PairOptions(*folders, image_pattern=found[1]))
