"""Ids and the paths that are made of them, patterns and the names that fit them."""

from __future__ import annotations

import os
import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusecli.errors import UsageError
from fusecli.pairs.open import fold, relative_path
from fusecli.pairs.pattern import Pattern, file_pattern, key_pattern

# Parts of ids that some system takes for something else.
ODD = r"|.|..|...| |a |a.|.a|nul|NUL.x|a.npy|a.NPZ|%|%2E|a\b|c:|*|é|ß|SS|\u017f|K|ﬃ|İ|%u0041|%~|~"
PARTS = st.one_of(
    st.text(st.characters(exclude_characters="/"), max_size=12),
    st.sampled_from(ODD.split("|")),
    st.sampled_from(["e\u0301", "\0", "\n", "\ud800", "\udc80", "i\u0307", "x" * 300, "é" * 150]),
)
IDS = st.lists(PARTS, min_size=1, max_size=5).map("/".join)
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.I)


@pytest.mark.parametrize(
    "id",
    ["a/0001", "0001", "IMG_0001 (2)", "a.b/c-d_e", "laion@x+y=z,~", "été/日本", "a b/c", "x'y&z"],
)
def test_ordinary_ids_are_their_own_paths(id: str) -> None:
    assert relative_path(id) == id
    assert relative_path(id, ".npy") == f"{id}.npy"


@pytest.mark.parametrize(
    ("id", "path"),
    [
        ("../../x", "%2E%2E/%2E%2E/x"),
        ("/etc/passwd", "%/etc/passwd"),
        ("a//b", "a/%/b"),
        ("a/", "a/%"),
        ("", "%"),
        (".hidden", "%2Ehidden"),
        ("a\0b", "a%00b"),
        ("a\\b", "a%5Cb"),
        ("laion:12", "laion%3A12"),
        ("100%", "100%25"),
        ("nul", "%6Eul"),
        ("COM1.x/y", "%43OM1.x/y"),
        ("end.", "end%2E"),
        ("end ", "end%20"),
        ("a.npy/b", "a%2Enpy/b"),
        ("a.npy", "a.npy"),
        ("\udc80", "%uDC80"),
    ],
)
def test_what_a_system_could_take_amiss_is_written_out(id: str, path: str) -> None:
    assert relative_path(id) == path


@settings(deadline=None)
@given(IDS)
@example("\ud800")
def test_a_path_stays_inside_whatever_the_id(id: str) -> None:
    path = relative_path(id, ".npy")
    assert path.endswith(".npy")
    assert len(path.encode()) <= 1024 + 4
    for part in path.split("/"):
        assert part
        assert part[0] != "."
        assert part[-1] not in ". "
        assert not set(part) & set('<>:"|?*\\')
        assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in part)
        assert not RESERVED.fullmatch(part.removesuffix(".npy"))
        assert len(part.encode()) <= 255
    assert os.path.normpath(os.path.join("out", path)) == os.path.join("out", *path.split("/"))
    assert not any(part.lower().endswith(".npy") for part in path.split("/")[:-1])


def naive_fold(path: str) -> str:
    return unicodedata.normalize("NFC", path.casefold())


@settings(deadline=None)
@given(IDS, IDS)
@example("ß", "SS")
@example("e\u0301", "É")
@example("%2E.", "..")
def test_no_two_ids_have_one_path(one: str, other: str) -> None:
    """Nor one when folded; only ids that are one when folded may, and those are refused."""
    if one != other:
        assert relative_path(one) != relative_path(other)
    if fold(one) != fold(other):
        assert fold(relative_path(one)) != fold(relative_path(other))


@settings(deadline=None)
@given(st.text(), st.text())
@example("ß", "ẞ")
def test_fold_makes_equal_what_case_or_form_make_equal(one: str, other: str) -> None:
    for form in ("NFC", "NFD"):
        assert fold(unicodedata.normalize(form, one)) == fold(one)
    assert fold(one.casefold()) == fold(one)
    # The iota below, which moves when it is folded, is where Unicode's own rule differs.
    if "\u0345" not in unicodedata.normalize("NFD", one + other):
        assert (naive_fold(one) == naive_fold(other)) <= (fold(one) == fold(other))


AROUND = st.text(st.characters(exclude_characters="{}/"), max_size=5).filter(
    lambda text: not text.startswith(".")
)


@settings(deadline=None)
@given(AROUND, AROUND, st.text(min_size=1))
def test_pattern_finds_the_id_that_a_name_was_made_of(prefix: str, suffix: str, id: str) -> None:
    pattern = key_pattern("image", f"{prefix}{{id}}{suffix}")
    assert pattern.id_of(pattern.name_of(id)) == id


@settings(deadline=None)
@given(st.text(max_size=8), st.text(max_size=3), st.text(max_size=3))
def test_pattern_takes_no_name_that_it_would_not_make(name: str, before: str, after: str) -> None:
    pattern = Pattern("", before, after)
    id = pattern.id_of(name)
    if id is not None:
        assert id
        assert pattern.name_of(id) == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{id}", ("", "", None)),
        ("{id}_img", ("", "_img", None)),
        ("img_{id}.npy", ("img_", "", ".npy")),
        ("{id}.txt", ("", ".txt", None)),
        ("{id}.txt.NPY", ("", ".txt", ".npy")),
        ("{id}/image.safetensors", ("", "/image", ".safetensors")),
        ("{id}.npy", ("", "", ".npy")),
    ],
)
def test_ending_in_a_pattern_is_told_from_the_name(text: str, expected: tuple) -> None:
    pattern = file_pattern("image", text)
    assert (pattern.prefix, pattern.suffix, pattern.ending) == expected


@pytest.mark.parametrize("text", ["", "img", "{id}{id}", "{ID}", "{id"])
def test_pattern_without_one_id_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--text-pattern .*: expected exactly one \{id\}"):
        file_pattern("text", text)


@pytest.mark.parametrize("text", ["/abs/{id}", "../{id}", "a//{id}", "{id}/.hidden", ".{id}"])
def test_pattern_that_leaves_the_folder_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--image-pattern"):
        file_pattern("image", text)
