"""Attention maps as files: torch's own weights, masks, stacks, and a result that stays the same."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusecli import FuseOptions, FusionConfig, ImageTextFusion, fuse_files, save_module
from fusecli.errors import OutputError, UsageError
from fusecli.fusion.backend.arrays import NumpyArrays, TorchArrays
from fusecli.fusion.methods.attention.fusion import AttentionFusion
from fusecli.fusion.methods.attention.operands import prepare
from fusecli.fusion.methods.attention.plan import Sizes, all_plans
from fusecli.fusion.options import ModuleOptions as Switches
from fusecli.maps.writer import MapOptions, MapSink

ENGINES = ("numpy", "torch")
DI, DT, D, H = 10, 6, 12, 3


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def trained(**switches):
    """A module whose attention is far from uniform, and its file."""
    module = ImageTextFusion(D, H, image_dim=DI, text_dim=DT, **switches)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
            if parameter.dim() > 1:
                parameter.mul_(1.5 / parameter.shape[1] ** 0.5)
    save_module(module, "w.safetensors", force=True)
    return module.double().eval()


def torchs_weights(module, image, text, image_mask=None):
    """What `nn.MultiheadAttention` says its weights were, `[N, H, T, P (+ 1)]`, float64."""
    image, text = torch.from_numpy(image).double(), torch.from_numpy(text).double()
    padding = None if image_mask is None else ~torch.from_numpy(image_mask)
    with torch.inference_mode():
        tokens = module.image_proj(image)
        _, weights = module.attention(
            module.text_proj(text),
            tokens,
            tokens,
            key_padding_mask=padding,
            need_weights=True,
            average_attn_weights=False,
        )
    return weights.numpy()


def fuse(image, text, maps=None, **options):
    """Write the arrays, fuse the files; the map as it is on disk, and the report."""
    np.save("image.npy", image)
    np.save("text.npy", text)
    maps = maps or MapOptions(attention="map.npy")
    options = {"force": True, "weights": "w.safetensors"} | options
    report = fuse_files(FuseOptions("image.npy", "text.npy", "out.npy", maps=maps, **options))
    return None if maps.attention is None else load(maps.attention), report


def load(path):
    if path.endswith(".npy"):
        return np.load(path, allow_pickle=False)
    if path.endswith(".npz"):
        return np.load(path, allow_pickle=False)["attention"]
    return safetensors.numpy.load_file(path)["attention"]


# --- the numbers --------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("P", [2, 9])
def test_one_pair_s_map_is_what_torch_says(engine, P):
    module = trained()
    image, text = noise(P, DI), noise(5, DT, seed=1)
    wanted = torchs_weights(module, image[None], text[None])[0]
    assert np.abs(wanted - 1 / P).max() > 0.2  # far from uniform
    mean, report = fuse(image, text, engine=engine)
    each, _ = fuse(image, text, MapOptions("map.npy", per_head=True), engine=engine)
    assert (mean.shape, each.shape, mean.dtype) == ((5, P), (H, 5, P), np.float32)
    np.testing.assert_allclose(each, wanted, atol=2e-6)
    np.testing.assert_allclose(mean, wanted.mean(axis=0), atol=2e-6)
    assert report.maps == {
        "file": "map.npy",
        "key": None,
        "shape": [5, P],
        "axes": "TP",
        "dtype": "float32",
        "bytes": 5 * P * 4,
    }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("per_head", [False, True])
def test_a_stack_s_maps_come_sample_after_sample_whatever_the_chunks(engine, per_head):
    module = trained()
    image, text = noise(23, 7, DI), noise(23, 5, DT, seed=1)
    wanted = torchs_weights(module, image, text)
    maps = MapOptions("map.npy", per_head=per_head)
    for memory in (None, 10_000):
        found, report = fuse(image, text, maps, engine=engine, max_memory=memory)
        np.testing.assert_allclose(found, wanted if per_head else wanted.mean(1), atol=2e-6)
        assert report.maps["axes"] == ("NHTP" if per_head else "NTP")


@pytest.mark.parametrize("ending", [".npy", ".npz", ".safetensors"])
def test_the_map_is_the_same_in_every_format(ending):
    trained()
    image, text = noise(3, 4, DI), noise(3, 5, DT, seed=1)
    plain, _ = fuse(image, text)
    found, report = fuse(image, text, MapOptions(f"m{ending}"))
    assert np.array_equal(found, plain)
    assert report.maps["key"] == (None if ending == ".npy" else "attention")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("image_axes", ["PD", None])
@pytest.mark.parametrize("per_sample_mask", [None, False, True])
def test_a_shared_image_gives_a_map_a_sample(engine, image_axes, per_sample_mask):
    module = trained()
    image, text = noise(6, DI), noise(4, 5, DT, seed=1)
    mask = np.ones((4, 6), bool)
    options = {}
    if per_sample_mask is not None:
        mask = np.random.default_rng(2).random((4, 6)) < 0.6
        mask[:, 0] = True
        mask = mask if per_sample_mask else np.tile(mask[:1], (4, 1))
        np.save("im.npy", mask if per_sample_mask else mask[0])
        options["image_mask"] = "im.npy"
    wanted = torchs_weights(module, np.tile(image, (4, 1, 1)), text, mask)
    given_image = image if image_axes else image[None]
    for memory in (None, 10_000):
        found, _ = fuse(
            given_image,
            text,
            MapOptions("map.npy", per_head=True),
            engine=engine,
            image_axes=image_axes,
            max_memory=memory,
            **options,
        )
        np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("null_token", [False, True])
def test_padding_is_zero_and_rows_sum_to_one(engine, null_token):
    module = trained(null_token=null_token)
    image, text = noise(5, 7, DI), noise(5, 4, DT, seed=1)
    real = np.random.default_rng(3).random((5, 7)) < 0.5
    real[:, 2] = True
    real[3] = False  # an image without a real token
    words = np.arange(4) < np.array([4, 1, 3, 4, 2])[:, None]
    np.save("im.npy", real)
    np.save("tm.npy", words)
    found, report = fuse(
        image,
        text,
        MapOptions("map.npy", per_head=True),
        engine=engine,
        image_mask="im.npy",
        text_mask="tm.npy",
        allow_empty_image=True,
    )
    seen = real.any(1)[:, None] & words  # [N, T]
    assert (found.transpose(0, 3, 1, 2)[~real] == 0).all()
    assert (found.transpose(0, 2, 1, 3)[~seen] == 0).all()
    sums = found.sum(-1).transpose(0, 2, 1)[seen]
    wanted = torchs_weights(module, image, text, real | ~real.any(1)[:, None])
    if null_token:
        assert (sums < 1 - 1e-4).any()
        np.testing.assert_allclose(
            1 - sums, wanted[..., -1].transpose(0, 2, 1)[seen], rtol=1e-4, atol=2e-6
        )
    else:
        np.testing.assert_allclose(sums, 1, atol=1e-6)
    np.testing.assert_allclose(
        found.transpose(0, 2, 1, 3)[seen],
        wanted[..., :7].transpose(0, 2, 1, 3)[seen],
        atol=2e-6,
    )
    assert report.maps["shape"] == [5, H, 4, 7]


@pytest.mark.parametrize("engine", ENGINES)
def test_one_image_token_has_all_the_weight_unless_it_is_masked(engine):
    trained()
    np.save("im.npy", np.array([[1], [0], [1]]))
    found, _ = fuse(
        noise(3, DI), noise(3, 5, DT), engine=engine, image_mask="im.npy", allow_empty_image=True
    )
    assert found.shape == (3, 5, 1)
    assert (found[[0, 2]] == 1).all()
    assert (found[1] == 0).all()


def test_single_vectors_have_both_axes_too():
    trained(null_token=True)
    found, report = fuse(noise(DI), noise(DT))
    assert found.shape == (1, 1)
    assert report.maps["axes"] == "TP"
    found, report = fuse(noise(4, DI), noise(4, DT), image_axes="ND", text_axes="ND")
    assert found.shape == (4, 1, 1)


@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 2**16),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_maps_do_not_depend_on_the_parts_they_arrive_in(n, T, P, masked, seed, data):
    """Whatever parts the engine hands out, the maps are those of the whole."""
    rng = np.random.default_rng(seed)
    weights = rng.random((n, 2, T, P), np.float32) + 0.1
    image_mask = rng.random((n, P)) < 0.4 if masked else None
    text_mask = rng.random((n, T)) < 0.5 if masked else None
    cuts = sorted(data.draw(st.sets(st.integers(1, n), max_size=n)) | {n})
    kept = data.draw(st.integers(0, n - 1))

    def maps(parts, sample):
        sink = MapSink(MapOptions(), (n, T, P), {}, sample)
        chunk = sink.chunk(0, n, T, image_mask, text_mask)
        chunk.extend(parts)
        sink.write(chunk)
        return sink.kept

    parts = [weights[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]
    wanted = weights[kept].copy()
    if masked:
        wanted[:, ~text_mask[kept]] = 0
        wanted *= image_mask[kept].any()
    assert np.array_equal(maps(parts, kept), wanted)


# --- asking changes nothing ---------------------------------------------------------------


@pytest.mark.parametrize(
    "arrays", [NumpyArrays, lambda: TorchArrays("cpu", "float32")], ids=ENGINES
)
@pytest.mark.parametrize("switches", [{}, {"null_token": True}, {"residual": True}], ids=str)
@pytest.mark.parametrize(("n", "images", "P"), [(1, 1, 9), (6, 6, 9), (6, 1, 9), (3, 3, 1)])
def test_asking_does_not_change_a_bit_in_any_order_of_products(arrays, switches, n, images, P):
    config = FusionConfig(D, H, DI, DT, **switches)
    sizes = Sizes(n, 5, P, DT, DI, D, H, config.null_token, config.residual)
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) / 2
        for name, shape in config.parameter_shapes().items()
    }
    image, text = noise(images, P, DI), noise(n, 5, DT, seed=1)
    mask = np.ones((images, P), bool)
    mask[0, -1] = P == 1
    plans = list(all_plans(sizes))
    assert len(plans) >= 3
    for plan in plans:
        engine = arrays()
        fusion = AttentionFusion(prepare(weights, config, plan, engine), engine, "cpu", 1)
        silent = fusion.fuse(image, text, mask).copy()
        parts = []
        asked = fusion.fuse(image, text, mask, None, parts).copy()
        assert np.array_equal(asked, silent), plan
        whole = np.concatenate(parts)
        assert whole.shape == ((n, H, 5, P) if images == n else (1, H, n * 5, P))


@pytest.mark.parametrize("options", [{"direction": "both"}, {"pool": "mean"}], ids=str)
def test_further_tensors_of_the_result_do_not_disturb_the_map(options):
    trained()
    image, text = noise(3, 6, DI), noise(3, 5, DT, seed=1)
    plain, _ = fuse(image, text)
    np.save("image.npy", image)
    maps = MapOptions("m.npy", show=True)
    shown = []
    several = FuseOptions(
        "image.npy", "text.npy", "o.npz", weights="w.safetensors", maps=maps, **options
    )
    fuse_files(several, show=shown.append)
    assert np.array_equal(np.load("m.npy"), plain)
    np.testing.assert_allclose(shown[0].times, plain[0] * 6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        *(
            (
                {"switches": Switches(method=method, dim=6)},
                r"--attention, --plot or --show needs a method with attention from text tokens to "
                rf"image tokens \(attention or transformer\); {method} has none",
            )
            for method in ("concat", "sum", "bilinear")
        ),
        (
            {"switches": Switches(heads=2), "direction": "image"},
            "say --direction text or both",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "maps", [MapOptions("m.npy"), MapOptions(plot="p.png"), MapOptions(show=True)], ids=str
)
def test_where_no_text_token_weighs_image_tokens_there_is_no_map(maps, options, says):
    np.save("i.npy", noise(4, DI))
    np.save("t.npy", noise(5, DT))
    with pytest.raises(UsageError, match=says):
        fuse_files(FuseOptions("i.npy", "t.npy", "out.npy", maps=maps, **options))
    assert sorted(os.listdir()) == ["i.npy", "t.npy"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", [(40, 7), (1, 7), (None, 7)], ids=str)
def test_the_result_and_the_report_stay_the_same_when_maps_are_asked_for(engine, shape):
    trained()
    N, P = shape
    image = noise(P, DI) if N is None else noise(N, P, DI)
    text = noise(5, DT, seed=1) if N is None else noise(N, 5, DT, seed=1)
    results, reports = [], []
    for maps in (
        MapOptions(),
        MapOptions("map.npy"),
        MapOptions("map.npy", per_head=True),
        MapOptions(plot="p.png", show=True),
    ):
        _, report = fuse(image, text, maps, engine=engine, max_memory=20_000)
        results.append(Path("out.npy").read_bytes())
        reports.append(replace(report, maps=None).to_dict())
    assert len(set(results)) == 1
    assert all(report == reports[0] for report in reports)


@pytest.mark.slow
def test_memory_stays_bounded_while_a_stack_s_maps_are_written():
    """The maps alone are 360 MB here; what is resident grows by far less."""
    N, P = 15_000, 100
    trained()
    for name, shape in (("image.npy", (N, P, DI)), ("text.npy", (N, 20, DT))):
        written = np.lib.format.open_memmap(name, "w+", np.float16, shape)
        for start in range(0, N, 1000):
            written[start : start + 1000] = noise(min(1000, N - start), *shape[1:])
        del written
    code = (
        "import resource, sys\n"
        "from fusecli import FuseOptions, MapOptions, fuse_files\n"
        "maps = MapOptions(sys.argv[1], per_head=True) if sys.argv[1] else MapOptions()\n"
        "fuse_files(FuseOptions('image.npy', 'text.npy', 'out.npy', weights='w.safetensors',\n"
        "    engine='numpy', max_memory=16 << 20, maps=maps, force=True))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )

    def resident(name):
        done = subprocess.run(
            [sys.executable, "-c", code, name], capture_output=True, text=True, check=True
        )
        return int(done.stdout) / (1 if sys.platform == "darwin" else 1 / 1024)  # bytes

    plain, asked = resident(""), resident("map.npy")
    assert os.path.getsize("map.npy") > 350e6
    assert asked - plain < 48e6


# --- options, targets, whole or not at all --------------------------------------------------


@pytest.mark.parametrize(
    ("maps", "says"),
    [
        (MapOptions(per_head=True), "--per-head goes with --attention"),
        (MapOptions(plot="p.png", per_head=True), "--per-head goes with --attention"),
        (MapOptions(tokens="t.txt"), "--tokens goes with --plot FILE or --show"),
        (MapOptions(attention="m.npy", sample=0), "--sample goes with --plot FILE or --show"),
        (MapOptions(show=True, grid="2x2"), "--grid goes with --plot FILE"),
        (MapOptions(show=True, image_file="x.jpg"), "--image-file goes with --plot FILE"),
        (MapOptions(attention="-"), "--attention -: writes a file"),
        (MapOptions(plot="-"), "--plot -: writes a file"),
        (MapOptions(attention="m.txt"), "m.txt: an output ends in .npy or .npz or .safetensors"),
        (MapOptions(plot="m.jpg"), "m.jpg: an output ends in .png or .svg or .pdf"),
        (MapOptions(attention="out.npy"), "out.npy: is both the output and the attention"),
    ],
    ids=str,
)
def test_options_that_do_not_belong_together_are_refused(maps, says):
    trained()
    with pytest.raises(UsageError) as refused:
        fuse(noise(4, DI), noise(5, DT), maps)
    assert says in str(refused.value)
    assert not os.path.exists("out.npy")


@pytest.mark.parametrize("option", ["attention", "plot"])
def test_a_map_never_replaces_an_input_and_a_file_only_with_force(option):
    trained()
    name = "m.npy" if option == "attention" else "p.png"
    Path(name).write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already"):
        fuse(noise(4, DI), noise(5, DT), MapOptions(**{option: name}), force=False)
    assert not os.path.exists("out.npy")
    fuse(noise(4, DI), noise(5, DT), MapOptions(**{option: name}))
    assert Path(name).read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("maps", "text"),
    [
        (MapOptions("text.npy"), "text.npy"),
        (MapOptions("w.safetensors"), "w.safetensors"),
        (MapOptions(plot="photo.png", image_file="photo.png"), "photo.png"),
    ],
    ids=str,
)
def test_an_input_is_not_replaced_by_a_map(maps, text):
    trained()
    Path("photo.png").write_bytes(b"a photo")
    with pytest.raises(OutputError, match="is also an input"):
        fuse(noise(4, DI), noise(5, DT), maps)
    assert not os.path.exists("out.npy")


def test_a_failure_leaves_no_map_either(cli):
    np.save("i.npy", np.full((4, DI), 3e38, np.float32))
    np.save("t.npy", noise(8, 16))
    done = cli("fuse", "i.npy", "t.npy", "--attention", "m.npy", "--plot", "p.png")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert sorted(os.listdir()) == ["i.npy", "t.npy"]
    np.save("i.npy", noise(4, DI))
    done = cli("fuse", "i.npy", "t.npy", "--attention", "m.npy", "--plot", "p.png", "--strict")
    assert done.code == 1
    assert sorted(os.listdir()) == ["i.npy", "t.npy"]


@pytest.mark.slow
def test_a_map_that_finds_no_room_leaves_no_result_either():
    np.save("i.npy", noise(300, DI))
    np.save("t.npy", noise(200, 16))

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-m", "fusecli", "fuse", "i.npy", "t.npy", "-q"]
    done = subprocess.run(
        [*command, "--attention", "m.npy"], preexec_fn=small_files, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: m.npy: cannot be written")
    assert done.stderr.count("\n") == 1
    assert sorted(os.listdir()) == ["i.npy", "t.npy"]
    assert subprocess.run(command, preexec_fn=small_files).returncode == 0


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes(cli):
    np.save("i.npy", noise(3, 16, DI))
    np.save("t.npy", noise(3, 5, 16))
    outputs = ["m.npz", "m.safetensors", "p.png", "p.svg", "p.pdf"]
    seen = []
    for _ in range(2):
        for name in outputs:
            option = "--plot" if name.startswith("p") else "--attention"
            assert cli("fuse", "i.npy", "t.npy", "-f", option, name, "-q").code == 0
        seen.append([Path(name).read_bytes() for name in outputs])
    assert seen[0] == seen[1]


def test_the_report_says_where_the_weights_went(cli):
    np.save("i.npy", noise(16, DI))
    np.save("t.npy", noise(5, 16))
    done = cli("fuse", "i.npy", "t.npy", "--attention", "m.npz", "--per-head", "--json")
    assert json.loads(done.out)["maps"]["axes"] == "HTP"
    done = cli("fuse", "i.npy", "t.npy", "-f", "--attention", "m.npz", "--report")
    assert "attention weights: m.npz  [5, 16] float32, mean over heads, 320 bytes" in done.err
    done = cli("fuse", "i.npy", "t.npy", "-f", "--json")
    assert json.loads(done.out)["maps"] is None


def test_heads_are_those_of_the_options():
    np.save("i.npy", noise(4, DI))
    np.save("t.npy", noise(5, 16))
    maps = MapOptions("m.npy", per_head=True)
    fuse_files(FuseOptions("i.npy", "t.npy", switches=Switches(heads=2), maps=maps))
    assert np.load("m.npy").shape == (2, 5, 4)
