"""A batch says of its pairs what a single job says: in the summary, on stderr, in the journal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fusecli.batch import BatchOptions, run_batch
from fusecli.cli.commands.batch import _tells_how_to_go_on
from fusecli.features.pair_inputs import ReadOptions
from fusecli.pairs.pair import PairOptions
from tests.batches import journal

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Path("texts").mkdir()


def features(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def of_several_tensors(count: int) -> None:
    for index in range(count):
        tensors = {"last_hidden_state": features(6, 16), "pooler_output": features(16)}
        tensors["padding_mask"] = np.arange(6) >= 4
        save_file(tensors, f"images/{index}.safetensors")
        np.save(f"texts/{index}.npy", features(5, 16))


def test_the_chosen_tensor_those_not_used_and_the_mask_are_said_with_a_count() -> None:
    of_several_tensors(3)
    summary = run_batch(BatchOptions(PairOptions("images", "texts"), "out"))
    assert summary.done == 3
    said = [line for line in summary.lines() if line.startswith("note: ")]
    assert said == [
        "note: 3 pairs: images/0.safetensors[padding_mask] is used as the image mask "
        "(1 is padding)",
        "note: 3 pairs: images/0.safetensors: last_hidden_state [6, 16] is the image, "
        "padding_mask [6] is the image mask; not used: pooler_output [16]",
    ]
    data = json.loads(summary.to_json())
    assert data["notes"] == {"mask-used": 3, "tensors-used: last_hidden_state, padding_mask": 3}
    assert data["first_notes"] == [line.removeprefix("note: 3 pairs: ") for line in said]
    for index, line in enumerate(journal(Path("out"))):
        mask, tensors = line["notes"]
        assert (
            mask
            == f"images/{index}.safetensors[padding_mask] is used as the image mask (1 is padding)"
        )
        assert tensors.endswith("not used: pooler_output [16]")


def test_pairs_that_choose_another_tensor_are_counted_by_themselves() -> None:
    of_several_tensors(3)
    save_file({"image_embeds": features(6, 16), "boxes": features(6, 4)}, "images/1.safetensors")
    summary = run_batch(BatchOptions(PairOptions("images", "texts"), "out"))
    assert summary.notes["tensors-used: last_hidden_state, padding_mask"] == 2
    assert summary.notes["tensors-used: image_embeds"] == 1
    assert any("image_embeds [6, 16] is the image" in line for line in summary.lines())


def test_a_name_of_its_own_in_every_file_gives_few_lines() -> None:
    for index in range(20):
        tensors = {f"x{index}": features(6, 16), "labels": features(2)}
        save_file(tensors, f"images/{index}.safetensors")
        np.save(f"texts/{index}.npy", features(5, 16))
    summary = run_batch(BatchOptions(PairOptions("images", "texts"), "out"))
    assert summary.done == 20
    assert len(summary.notes) <= 9
    assert sum(summary.notes.values()) == 20


def test_dequantized_features_are_said() -> None:
    whole = np.arange(96, dtype=np.int8).reshape(6, 16)
    tensors = {"image": whole, "scale": np.array(0.5, np.float32)}
    save_file(tensors, "images/a.safetensors")
    np.save("texts/a.npy", features(5, 16))
    np.save("real.npy", whole.astype(np.float32) / 2)
    summary = run_batch(BatchOptions(PairOptions("images", "texts"), "out"))
    assert summary.notes["dequantized"] == 1
    Path("m.csv").write_text("id,image,text\na,real.npy,texts/a.npy\n")
    run_batch(BatchOptions(PairOptions(manifest="m.csv"), "plain"))
    assert Path("out/a.npy").read_bytes() == Path("plain/a.npy").read_bytes()


def test_uniform_attention_is_in_the_summary() -> None:
    for index in range(2):
        np.save(f"images/{index}.npy", 0.01 * features(6, 16))
        np.save(f"texts/{index}.npy", features(5, 16))
    summary = run_batch(BatchOptions(PairOptions("images", "texts"), "out"))
    (said,) = json.loads(summary.to_json())["run_diagnoses"]
    assert said.startswith("uniform-attention: attention is close to uniform in the first 2 pairs")


def test_strict_fails_the_pair_whose_result_is_not_finite() -> None:
    for index in range(3):
        np.save(f"images/{index}.npy", features(6, 16))
        np.save(f"texts/{index}.npy", features(5, 16))
    spoiled = features(6, 16)
    spoiled[2, 3] = np.nan
    np.save("images/1.npy", spoiled)
    reading = ReadOptions(allow_nonfinite=True)
    options = BatchOptions(PairOptions("images", "texts"), "out", reading=reading, strict=True)
    summary = run_batch(options)
    assert (summary.done, summary.failed) == (2, 1)
    ((id, why),) = summary.failures
    assert id == "1"
    assert why.startswith("--strict: 80 of 80 numbers of the result are NaN or infinity")
    assert not Path("out/1.npy").exists()
    assert Path("out/0.npy").exists()


@pytest.mark.parametrize("rows", [True, False])
def test_a_key_in_the_manifest_still_tells_what_is_not_used(rows: bool) -> None:
    shape = (2, 6, 16) if rows else (6, 16)
    tensors = {"image_features": features(*shape), "image_mask": np.ones(shape[:-1], np.int64)}
    save_file({**tensors, "scores": features(*shape[:-1])}, "images/s.safetensors")
    np.save("texts/t.npy", features(5, 16))
    header, row = ("image_row,", "1,") if rows else ("", "")
    Path("m.csv").write_text(
        f"id,image,image_key,{header}text\na,images/s.safetensors,image_features,{row}texts/t.npy\n"
    )
    summary = run_batch(BatchOptions(PairOptions(manifest="m.csv"), "out"))
    assert summary.lines()[1] == (
        f"note: 1 pair: images/s.safetensors: image_features {list(shape)} is the image, "
        f"image_mask {list(shape[:-1])} is the image mask; not used: scores {list(shape[:-1])}"
    )


def test_of_a_file_by_pair_id_the_tensors_of_other_pairs_are_not_listed() -> None:
    whole = np.arange(96, dtype=np.int8).reshape(6, 16)
    tensors = {"a": whole, "a.scale": np.array([0.5], np.float32), "b": features(6, 16)}
    save_file(tensors, "i.safetensors")
    save_file({"a": features(5, 16), "b": features(5, 16)}, "t.safetensors")
    summary = run_batch(BatchOptions(PairOptions("i.safetensors", "t.safetensors"), "out"))
    assert summary.notes == {"dequantized": 1}


@pytest.mark.parametrize(
    ("reached", "told"),
    [
        ([0, 0], "stopped; the same command goes on from there"),
        ([299, 1300], "stopped after 299 of 1,300 pairs; the same command goes on from there"),
        ([1300, 1300], "stopped after all 1,300 pairs; the same command finishes what is left"),
    ],
)
def test_a_stopped_run_says_what_is_left(
    reached: list[int], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), _tells_how_to_go_on(reached, quiet=False):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == f"{told}\n"
