"""Pairs of tensors with one id in safetensors files: one, two, or folders of shards."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fusecli.errors import FeatureFileError, FuseError, PairsError, UsageError
from fusecli.pairs.open import Pair, PairOptions, PairSource, Place, open_pairs

ONE = np.zeros(1, np.float32)


def write(path: str, *keys: str) -> None:
    """A safetensors file with these keys."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    save_file(dict.fromkeys(keys, ONE), path)


def shard(number: int, of: int, stem: str = "model") -> str:
    return f"{stem}-{number:05d}-of-{of:05d}.safetensors"


def opened(images: str, texts: str | None = None, **options: object) -> PairSource:
    return open_pairs(PairOptions(images, texts, **options))


def ids(source: PairSource) -> list[str]:
    found = [pair.id for pair in source]
    assert len(found) == source.total
    assert found == [pair.id for pair in source], "a second pass gives the same"
    return found


def test_two_files_are_matched_by_key(folder: Path) -> None:
    write("images.safetensors", "b", "a/1", "a", "odd")
    write("texts.safetensors", "a", "b", "c", "a/1")
    source = opened("images.safetensors", "texts.safetensors")
    assert list(source) == [
        Pair(id, Place("images.safetensors", id), Place("texts.safetensors", id), None, None, None)
        for id in ("a", "a/1", "b")
    ]
    assert source.unmatched.counts == {"image": 1, "text": 1}
    assert source.unmatched.first == [
        ("image", "images.safetensors[odd]"),
        ("text", "texts.safetensors[c]"),
    ]


def test_one_file_holds_both_sides_and_masks(folder: Path) -> None:
    write("f.safetensors", "1.image", "1.text", "2.image", "2.text", "2.image_mask", "2.text_mask")
    one, two = opened("f.safetensors")
    f = "f.safetensors"
    assert one == Pair("1", Place(f, "1.image"), Place(f, "1.text"), None, None, None)
    masks = Place(f, "2.image_mask"), Place(f, "2.text_mask")
    assert two == Pair("2", Place(f, "2.image"), Place(f, "2.text"), *masks, None)
    assert list(opened(f, f)) == [one, two]


def test_masks_may_lie_beside_their_side(folder: Path) -> None:
    write("i.safetensors", "1", "1.image_mask", "2")
    write("t.safetensors", "1", "2", "2.text_mask")
    one, two = opened("i.safetensors", "t.safetensors")
    assert (one.image_mask, one.text_mask) == (Place("i.safetensors", "1.image_mask"), None)
    assert (two.image_mask, two.text_mask) == (None, Place("t.safetensors", "2.text_mask"))


def test_what_belongs_to_nobody_is_counted_by_what_it_is(folder: Path) -> None:
    keys = ["1.image", "1.text", "2.image", "3.text", "3.text_mask", "4.image_mask", "5.text_mask"]
    write("f.safetensors", *keys, "1.fused", "meta", ".image")
    source = opened("f.safetensors")
    assert ids(source) == ["1"]
    assert source.unmatched.counts == {
        "image": 1, "text": 1, "image mask": 1, "text mask": 1, "tensor": 3,
    }  # fmt: skip
    assert dict(source.unmatched.first[:4]) == {
        "image": "f.safetensors[2.image]",
        "text": "f.safetensors[3.text]",
        "image mask": "f.safetensors[4.image_mask]",
        "text mask": "f.safetensors[5.text_mask]",
    }
    with pytest.raises(PairsError, match="--strict-pairs: 1 image and 1 text and 1 image mask"):
        opened("f.safetensors", strict_pairs=True)


def test_patterns_are_of_keys(folder: Path) -> None:
    write("i.safetensors", "v/1/img", "v/2/img", "other")
    write("t.safetensors", "1", "2")
    options = {"image_pattern": "v/{id}/img", "text_pattern": "{id}"}
    source = opened("i.safetensors", "t.safetensors", **options)
    assert [(pair.id, pair.image.key) for pair in source] == [("1", "v/1/img"), ("2", "v/2/img")]
    assert source.unmatched.first == [("tensor", "i.safetensors[other]")]


def test_shards_are_walked_two_files_at_a_time(folder: Path) -> None:
    write(f"i/{shard(1, 2)}", "a", "b", "c", "d")
    write(f"i/{shard(2, 2)}", "e", "f")
    write(f"t/{shard(1, 2)}", "b", "d", "f")
    write(f"t/{shard(2, 2)}", "a", "c", "e")
    source = opened("i", "t")
    assert ids(source) == ["b", "d", "a", "c", "f", "e"]
    assert [os.path.basename(pair.text.file) for pair in source] == [
        *[shard(1, 2)] * 2, *[shard(2, 2)] * 2, shard(1, 2), shard(2, 2),
    ]  # fmt: skip


def test_index_says_which_files_are_shards(folder: Path) -> None:
    write("f/x-00001.safetensors", "1.image", "2.text")
    write("f/x-00002.safetensors", "1.text", "2.image")
    write("f/stale.safetensors", "3.image", "3.text")
    index = {"metadata": {}, "weight_map": {"1.image": "x-00001.safetensors"}}
    index["weight_map"]["1.text"] = "x-00002.safetensors"
    index["weight_map"] |= {"2.image": "x-00002.safetensors", "2.text": "x-00001.safetensors"}
    Path("f/x.safetensors.index.json").write_text(json.dumps(index))
    for name in ("f", "f/x.safetensors.index.json"):
        source = opened(name)
        assert ids(source) == ["1", "2"]
        assert source.unmatched.total == 0
    (one, two) = opened("f")
    assert (one.image.file, one.text.file) == ("f/x-00001.safetensors", "f/x-00002.safetensors")
    assert (two.image.file, two.text.file) == ("f/x-00002.safetensors", "f/x-00001.safetensors")
    Path("f/y.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PairsError, match=r"f: holds several sets of shards: name one by its index"):
        opened("f")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[", "is not JSON: Expecting value"),
        ("[" * 100_000, "is not JSON: maximum recursion"),
        ("[]", "has no 'weight_map'"),
        ('{"weight_map": {}}', "has no 'weight_map'"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "names the shard '../x.safetensors'"),
        ('{"weight_map": {"a": "/x.safetensors"}}', "names the shard '/x.safetensors'"),
        ('{"weight_map": {"a": 7}}', "names the shard '7'"),
    ],
)
def test_damaged_index_is_refused(folder: Path, index: str, message: str) -> None:
    write("f/x.safetensors", "1.image", "1.text")
    Path("f/x.safetensors.index.json").write_text(index)
    with pytest.raises(PairsError) as refused:
        opened("f")
    assert str(refused.value).startswith(f"f/x.safetensors.index.json: {message}")


def test_shard_that_an_index_names_must_be_there(folder: Path) -> None:
    write("f/x.safetensors", "1.image", "1.text")
    Path("f/x.safetensors.index.json").write_text('{"weight_map": {"1": "gone.safetensors"}}')
    with pytest.raises(FeatureFileError, match=r"^f/gone.safetensors: no such file$"):
        opened("f")


@pytest.mark.parametrize(
    ("there", "of", "said"),
    [
        ([2], 2, "f: holds 1 of 2 shards, model-00001-of-00002.safetensors is missing: complete"),
        ([1, 2, 4], 4, "f: holds 3 of 4 shards, model-00003-of-00004.safetensors is missing"),
        ([0, 1], 3, "f: holds 2 of 3 shards, model-00002-of-00003.safetensors is missing"),
        ([1], 99999999, "f: holds 1 of 99,999,999 shards, model-00002-of-99999999.safetensors is"),
        ([0, 1, 2], 3, None),
    ],
)
def test_shard_that_the_names_of_others_count_must_be_there(
    folder: Path, there: list[int], of: int, said: str | None
) -> None:
    for number in there:
        write(f"f/{shard(number, of)}", f"{number}.image", f"{number}.text")
    if said is None:
        assert len(ids(opened("f"))) == of
        return
    with pytest.raises(PairsError) as refused:
        opened("f")
    assert str(refused.value).startswith(said)


def test_index_too_large_to_read_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("f/x.safetensors", "1.image", "1.text")
    index = "f/x.safetensors.index.json"
    with open(index, "wb") as sparse:
        sparse.truncate((32 << 20) + 1)
    source = opened("f")
    assert ids(source) == ["1"]
    assert source.notes == [
        f"{index}: is larger than 32 MB and not read: every .safetensors file of its folder is "
        "taken"
    ]
    with pytest.raises(PairsError, match="is larger than 32 MB: give its folder instead"):
        opened(index)


def test_kind_of_a_folder_is_told_by_names_or_said(folder: Path) -> None:
    for side in "it":
        write(f"{side}/000.safetensors", "1", "2")
        write(f"{side}/001.safetensors", "3")
    assert ids(opened("i", "t")) == ["000", "001"]
    assert ids(opened("i", "t", keyed=True)) == ["1", "2", "3"]
    for side in "it":
        write(f"{side}2/{shard(1, 1)}", "1", "2")
    assert ids(opened("i2", "t2")) == ["1", "2"]
    assert ids(opened("i2", "t2", keyed=False)) == ["model-00001-of-00001"]
    with pytest.raises(UsageError, match=r"^i2: holds tensors by id and t is a folder of one file"):
        opened("i2", "t")
    with pytest.raises(UsageError, match=r"^t2: holds tensors by id and i is a folder of one file"):
        opened("i", "t2")
    assert ids(opened("i2", "t", keyed=True)) == ["1", "2"]


@pytest.mark.parametrize("role", ["image", "text", "text mask"])
def test_two_shards_with_one_id_are_refused(folder: Path, role: str) -> None:
    suffix = {"image": ".image", "text": ".text", "text mask": ".text_mask"}[role]
    write(f"f/{shard(1, 2)}", "1.image", "1.text", "1.text_mask")
    write(f"f/{shard(2, 2)}", "2.image", "2.text", f"1{suffix}")
    with pytest.raises(PairsError) as refused:
        opened("f")
    if role == "image":
        assert f"{shard(2, 2)}[1.image]: has the id '1', as f/{shard(1, 2)}[1.image]" in str(
            refused.value
        )
    else:
        assert str(refused.value) == (
            f"f/{shard(2, 2)}: holds the {role} of '1', and so does f/{shard(1, 2)}"
        )


def test_hostile_ids_stay_ids(folder: Path) -> None:
    hostile = ["../../x", "/abs", "a\0b", "a\nb", "..", "nul", "A:b", "é" * 300]
    write("f.safetensors", *(f"{id}.{side}" for id in hostile for side in ("image", "text")))
    assert sorted(ids(opened("f.safetensors"))) == sorted(hostile)
    write("g.safetensors", "a.image", "a.text", "A.image", "A.text")
    with pytest.raises(PairsError, match=r"g.safetensors\[a.image\]: 'a' and 'A' .* one output"):
        opened("g.safetensors")
    assert ids(opened("g.safetensors", ending="")) == ["A", "a"]
    write("h.safetensors", f"{'x' * 1025}.image", f"{'x' * 1025}.text")
    with pytest.raises(PairsError, match=r"has an id of 1,025 characters, at most 1,024 serve"):
        opened("h.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"", "a.safetensors: is not a sound .safetensors file"),
        ("a.safetensors", b"\xff" * 100, "a.safetensors: is not a sound .safetensors file"),
        ("a.npz", b"PK", "a.npz: expected a folder, or a .safetensors file"),
    ],
)
def test_damaged_file_is_refused(folder: Path, name: str, content: bytes, message: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(FuseError) as refused:
        opened(name)
    assert str(refused.value).startswith(message)


def test_folder_without_shards_is_refused(folder: Path) -> None:
    os.mkdir("f")
    with pytest.raises(PairsError, match=r"^f: holds no \.safetensors files$"):
        opened("f", "f", keyed=True)


KEYS = st.sets(st.sampled_from([f"{n:02}" for n in range(24)]), min_size=1)


@pytest.mark.slow
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(images=KEYS, texts=KEYS, cuts=st.tuples(*[st.integers(1, 4)] * 2), seed=st.integers(0, 9))
def test_pairs_are_what_both_sides_have_however_they_are_cut(
    tmp_path: Path, images: set[str], texts: set[str], cuts: tuple[int, int], seed: int
) -> None:
    root = tempfile.mkdtemp(dir=tmp_path)
    rng = np.random.default_rng(seed)
    for side, keys, cut in zip("it", (images, texts), cuts, strict=True):
        dealt = rng.permutation(sorted(keys))
        for number in range(cut):
            write(f"{root}/{side}/{shard(number + 1, cut)}", *dealt[number::cut].tolist())
    if not images & texts:
        with pytest.raises(PairsError, match="no pairs"):
            opened(f"{root}/i", f"{root}/t")
        return
    source = opened(f"{root}/i", f"{root}/t")
    found = list(source)
    assert {pair.id for pair in found} == images & texts
    assert len(found) == len(images & texts) == source.total
    runs = [(pair.image.file, pair.text.file) for pair in found]
    assert runs == sorted(runs), "no two files are visited twice"
    counts = {"image": len(images - texts), "text": len(texts - images)}
    assert source.unmatched.counts == {side: count for side, count in counts.items() if count}


# ------------------------------------------------------------------------- masks by pair id


def test_a_mask_under_the_name_of_one_pair_is_not_that_of_another(
    folder: Path, cli: Callable
) -> None:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((6, 48)).astype(np.float32)
    text = rng.standard_normal((7, 32)).astype(np.float32)
    ids = ("a", "ab", "c", "d", "e")
    images = dict.fromkeys(ids, image)
    padding = np.array([0, 0, 0, 1, 1, 1])
    masks = {"a.padding_mask": padding, "c_mask": 1 - padding, "d.num_boxes": np.array(3)}
    save_file({**images, **masks}, "images.safetensors")
    save_file(dict.fromkeys(ids, text), "texts.safetensors")
    done = cli("batch", "images.safetensors", "texts.safetensors", "-o", "out", "--dim", "32")
    assert done.code == 0
    assert "without a partner" not in done.err  # the masks are used
    assert "3 pairs: images.safetensors[a.padding_mask] is used as the image mask" in done.err
    np.save("mask.npy", padding == 0)
    for name, options in (("whole", ()), ("masked", ("--image-mask", "mask.npy"))):
        np.save("image.npy", image)
        np.save("text.npy", text)
        assert cli("fuse", "image.npy", "text.npy", "-o", f"{name}.npy", *options).code == 0
    for id in ids:
        wanted = "masked" if id in "acd" else "whole"
        np.testing.assert_allclose(
            np.load(f"out/{id}.npy"), np.load(f"{wanted}.npy"), atol=1e-5, err_msg=id
        )


def test_a_pairs_own_mask_that_does_not_fit_fails_that_pair(folder: Path, cli: Callable) -> None:
    tensors = {}
    for id in "ab":
        tensors[f"{id}.image"] = np.ones((6, 8), np.float32)
        tensors[f"{id}.text"] = np.ones((7, 8), np.float32)
    tensors["b.text_attention_mask"] = np.ones(6, np.int64)
    save_file(tensors, "all.safetensors")
    done = cli("batch", "all.safetensors", "-o", "out")
    assert done.code == 3
    assert "failed: b: all.safetensors[b.text_attention_mask]: the text mask has" in done.err
    assert Path("out/a.npy").exists()
    assert not Path("out/b.npy").exists()


@pytest.mark.parametrize("own", [False, True])
def test_scales_of_both_sides_are_no_pair_and_have_no_partner_to_miss(
    own: bool, folder: Path, cli: Callable
) -> None:
    rng = np.random.default_rng(0)
    real = {}
    for side, shape in (("images", (6, 48)), ("texts", (7, 32))):
        whole = {id: rng.integers(-99, 99, shape).astype(np.int8) for id in "ab"}
        scales = {"a.scale": 0.5, "b.scale": 0.25} if own else {"scale": 0.5}
        numbers = {key: np.array([scale], np.float32) for key, scale in scales.items()}
        save_file({**whole, **numbers}, f"{side}.safetensors")
        real[side] = {
            id: array * np.float32(scales.get(f"{id}.scale", 0.5)) for id, array in whole.items()
        }
    done = cli("batch", "images.safetensors", "texts.safetensors", "-o", "out", "--dim", "32")
    assert (done.code, "without a partner" in done.err) == (0, False), done.err
    for id in "ab":
        np.save("image.npy", real["images"][id])
        np.save("text.npy", real["texts"][id])
        assert cli("fuse", "image.npy", "text.npy", "-o", f"{id}.npy", "--dim", "32").code == 0
        np.testing.assert_allclose(np.load(f"out/{id}.npy"), np.load(f"{id}.npy"), atol=1e-5)


@pytest.mark.parametrize("mask", ["attention_mask", "a.attention_mask"])
def test_masks_of_both_sides_are_no_pair(mask: str, folder: Path, cli: Callable) -> None:
    rng = np.random.default_rng(0)
    sides = {"images": (6, 48), "texts": (7, 32)}
    for side, shape in sides.items():
        features = {id: rng.standard_normal(shape).astype(np.float32) for id in "ab"}
        save_file({**features, mask: np.arange(shape[0]) < 4}, f"{side}.safetensors")
        np.save(f"{side}.npy", features["a"])
        np.save(f"{side}_mask.npy", np.arange(shape[0]) < 4)
    done = cli("batch", "images.safetensors", "texts.safetensors", "-o", "out", "--dim", "32")
    assert (done.code, "without a partner" in done.err) == (0, False), done.err
    masks = ("--image-mask", "images_mask.npy", "--text-mask", "texts_mask.npy")
    assert cli("fuse", "images.npy", "texts.npy", "-o", "a.npy", "--dim", "32", *masks).code == 0
    np.testing.assert_allclose(np.load("out/a.npy"), np.load("a.npy"), atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 48), (48,), (2, 6, 48), (1, 6, 48)])
@pytest.mark.parametrize("mask", ["ski_mask", "ski.mask"])
def test_an_id_that_reads_as_the_mask_of_another_is_a_pair(
    shape: tuple[int, ...], mask: str, folder: Path
) -> None:
    for side in ("images", "texts"):
        save_file(dict.fromkeys(("ski", mask), np.ones(shape, np.float32)), f"{side}.safetensors")
    source = opened("images.safetensors", "texts.safetensors")
    assert ids(source) == sorted(("ski", mask))
    assert source.unmatched.counts == {}


@pytest.mark.parametrize(
    ("features", "marks"),
    [((6, 48), (6,)), ((6, 48), (5,)), ((2, 6, 48), (2, 1, 1, 6)), ((48, 3, 4), (3, 4)),
     ((6, 48), ()), ((3, 4, 48), (12,)), ((1, 6, 48), (1, 6))],
)  # fmt: skip
@pytest.mark.parametrize("mask", ["ski_mask", "ski.mask"])
def test_what_has_the_shape_of_a_mask_is_no_pair(
    features: tuple[int, ...], marks: tuple[int, ...], mask: str, folder: Path
) -> None:
    tensors = {"ski": np.ones(features, np.float32), mask: np.ones(marks, np.float32)}
    for side in ("images", "texts"):
        save_file(tensors, f"{side}.safetensors")
    assert ids(opened("images.safetensors", "texts.safetensors")) == ["ski"]


def test_a_scale_that_nothing_is_dequantized_with_is_named(folder: Path, cli: Callable) -> None:
    save_file({"a": np.ones((6, 48), np.float32), "a.scale": np.ones(1)}, "images.safetensors")
    save_file({"a": np.ones((7, 32), np.float32), "lengths": np.ones(9)}, "texts.safetensors")
    done = cli("batch", "images.safetensors", "texts.safetensors", "-o", "out", "--dim", "32")
    assert done.code == 0
    assert "images.safetensors[a.scale]" in done.err
    assert "texts.safetensors[lengths]" in done.err
