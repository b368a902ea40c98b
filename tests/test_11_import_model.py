"""Importing networks: the masks are those of a forward written by hand, and a wrong word is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Finished
from exported import ANY, Fine, Given, Small, export
from PIL import Image
from torch import Tensor
from torch.export import Dim
from torch.nn import functional

from pipeline import read_predictions
from pipeline.checkpoint import load_checkpoint, save_checkpoint
from pipeline.errors import InputError
from pipeline.import_config import ImportConfig
from pipeline.import_model import import_model
from pipeline.model_spec import read_spec
from pipeline.models import build_model
from pipeline.options import parse
from pipeline.predictor import Prediction, Predictor
from pipeline.segment import segment
from pipeline.segment_config import SegmentConfig

FOUR = {"name": "four", "classes": ["a", "b", "c", "d"]}
MEAN, STD = (0.6, 0.45, 0.3), (0.2, 0.25, 0.3)
PLAIN = {"mean": "0,0,0", "std": "1,1,1"}


@pytest.fixture
def four(tmp_path: Path) -> str:
    (tmp_path / "four.yaml").write_text(json.dumps(FOUR))
    return str(tmp_path / "four.yaml")


@pytest.fixture
def config(four: str, tmp_path: Path) -> Callable[..., ImportConfig]:
    """The options of an import of `Small` with sizes left open, changed by those given."""
    model = export(Small(), tmp_path / "net.pt2", torch.rand(2, 3, 32, 48), dynamic=ANY)

    def make(**options: Any) -> ImportConfig:
        numbers = {"mean": ",".join(map(str, MEAN)), "std": ",".join(map(str, STD))}
        return ImportConfig(
            **{"model": model, "label_set": four, "output": str(tmp_path / "out"), **numbers, **options}
        )

    return make


def drawn(*sizes: tuple[int, int]) -> list[np.ndarray]:
    """Pictures of soft noise: neighbours resemble each other, as in photographs."""
    rng = np.random.default_rng(7)
    coarse = [rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8) for height, width in sizes]
    return [
        np.asarray(Image.fromarray(pixels).resize((width, height)))
        for pixels, (height, width) in zip(coarse, sizes, strict=True)
    ]


def by_hand(
    picture: np.ndarray,
    network: Callable[[Tensor], Tensor],
    *,
    scale: float = 255.0,
    bgr: bool = False,
    size: tuple[int, int] | None = None,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> np.ndarray:
    """K x H x W probabilities of one picture, every step in the plainest words."""
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
    if size:
        x = functional.interpolate(x, size=size, mode="bilinear", antialias=True)
    x = x.float() / scale
    if bgr:
        x = x[:, [2, 1, 0]]
    x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        logits = functional.interpolate(network(x), size=x.shape[-2:], mode="bilinear")
        logits = functional.interpolate(logits, size=picture.shape[:2], mode="bilinear")
    return logits.softmax(1)[0].numpy()


def predicted(uri: str, *pictures: np.ndarray, **options: Any) -> list[Prediction]:
    found = Predictor(*load_checkpoint(uri), device="cpu", **options).predict(pictures)
    assert all(isinstance(one, Prediction) for one in found), found
    return found  # type: ignore[return-value]


def agree(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal but where rounding may decide between two classes."""
    return bool((found != expected).mean() <= 1e-3)


# ---- what a pixel goes through ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "hand"),
    [
        ({}, {}),
        ({"channel_order": "bgr"}, {"bgr": True}),
        ({"scale": 128.0}, {"scale": 128.0}),
        ({"input_size": "30,44"}, {"size": (30, 44)}),
        (
            {"input_size": "64,64", "channel_order": "bgr", "scale": 1.0, "mean": "120,110,100", "std": "60,50,40"},
            {"size": (64, 64), "bgr": True, "scale": 1.0, "mean": (120.0, 110.0, 100.0), "std": (60.0, 50.0, 40.0)},
        ),
    ],
)
def test_masks_are_those_of_a_forward_by_hand(
    config: Callable[..., ImportConfig], options: dict[str, Any], hand: dict[str, Any]
) -> None:
    import_model(config(**options))
    pictures = drawn((40, 56), (97, 131), (40, 56))
    together = predicted(config().output, *pictures, batch_size=2)
    for picture, found in zip(pictures, together, strict=True):
        expected = by_hand(picture, Small().eval(), **hand)
        assert agree(found.class_map, expected.argmax(0))
        assert found.mean_confidence == pytest.approx(expected.max(0).mean(), rel=1e-3)
        alone = predicted(config().output, picture, batch_size=2)[0]
        assert np.array_equal(alone.class_map, found.class_map)
    if hand:
        wrong = by_hand(pictures[1], Small().eval())
        assert not agree(together[1].class_map, wrong.argmax(0)), "the option changes nothing here"


def test_a_large_picture_is_enlarged_band_by_band(config: Callable[..., ImportConfig]) -> None:
    import_model(config(input_size="32,32"))
    (picture,) = drawn((700, 900))
    (found,) = predicted(config().output, picture, tile_px=256, overlap_px=32)
    assert agree(found.class_map, by_hand(picture, Small().eval(), size=(32, 32)).argmax(0))


def test_channels_are_led_to_classes(config: Callable[..., ImportConfig], tmp_path: Path) -> None:
    """Two channels share a class, one stands for none."""
    told = import_model(config(label_set="roads", class_map="0:1,1:0,3:1"))
    assert "4 channels for the 2 classes of roads" in told
    (picture,) = drawn((60, 80))
    (found,) = predicted(config().output, picture)
    p = by_hand(picture, Small().eval())
    expected = np.array([1, 0, 255, 1])[p.argmax(0)]
    assert agree(found.class_map, expected) and (found.class_map == 255).any()
    assert found.class_pixels.tolist() == [(found.class_map == k).sum() for k in range(2)]
    known = expected != 255
    assert found.mean_confidence == pytest.approx(p.max(0)[known].mean(), rel=1e-3)
    assert found.low_confidence_share == pytest.approx((p.max(0)[known] < 0.5).mean(), abs=1e-2)
    nothing = ImportConfig(**{**vars(config(label_set="roads", class_map="0:1")), "output": str(tmp_path / "b")})
    import_model(nothing)
    predictor = Predictor(*load_checkpoint(nothing.output), device="cpu")
    assert predictor._labels is not None
    predictor._labels[:] = 255
    (found,) = predictor.predict([picture])
    assert isinstance(found, Prediction) and (found.class_map == 255).all() and not found.class_pixels.any()
    assert np.isnan(found.mean_confidence) and np.isnan(found.low_confidence_share)


def test_probabilities_are_taken_for_what_they_are(config: Callable[..., ImportConfig], tmp_path: Path) -> None:
    model = export(Given(lambda y: y.softmax(1)), tmp_path / "p.pt2", torch.rand(1, 3, 32, 32))
    import_model(config(model=model))
    assert read_spec(config().output).options == {"probabilities": True}
    (picture,) = drawn((32, 32))
    (found,) = predicted(config().output, picture)
    expected = by_hand(picture, lambda x: Small().eval()(x).softmax(1).log())
    assert found.mean_confidence == pytest.approx(expected.max(0).mean(), abs=2e-2)


# ---- a fixed batch, a fixed size -------------------------------------------------------------------------------------


def test_a_program_of_one_batch_and_size_is_padded_and_tiled(
    config: Callable[..., ImportConfig], tmp_path: Path
) -> None:
    model = export(Fine(), tmp_path / "fixed.pt2", torch.rand(3, 3, 48, 64))
    import_model(config(model=model))
    predictor = Predictor(*load_checkpoint(config().output), device="cpu", batch_size=1)
    assert predictor.batch_size == 3
    pictures = drawn((48, 64), (20, 30), (131, 200), (48, 64), (30, 300))
    for picture, found in zip(pictures, predictor.predict(pictures), strict=True):
        assert isinstance(found, Prediction), found
        inner = (slice(1, -1), slice(1, -1))  # padded with the mean colour, by hand with 0 as well
        expected = by_hand(picture, Fine().eval()).argmax(0)
        assert np.array_equal(found.class_map[inner], expected[inner])


def test_a_program_within_bounds_is_tiled_at_the_largest(config: Callable[..., ImportConfig], tmp_path: Path) -> None:
    bounds = {0: Dim("n", max=2), 2: 8 * Dim("h", min=4, max=10), 3: 8 * Dim("w", min=4, max=12)}
    model = export(Fine(), tmp_path / "bounded.pt2", torch.rand(2, 3, 48, 64), dynamic=bounds)
    import_model(config(model=model))
    assert read_spec(config().output).size_multiple == 8
    pictures = drawn((9, 300), (200, 95), (50, 70))
    for picture, found in zip(pictures, predicted(config().output, *pictures, batch_size=16), strict=True):
        expected = by_hand(picture, Fine().eval()).argmax(0)
        assert np.array_equal(found.class_map[1:-1, 1:-1], expected[1:-1, 1:-1])


def test_a_program_for_squares_wants_an_input_size(config: Callable[..., ImportConfig], tmp_path: Path) -> None:
    side = Dim("side")
    model = export(Fine(), tmp_path / "square.pt2", torch.rand(1, 3, 48, 48), dynamic={2: side, 3: side})
    with pytest.raises(InputError, match="square pictures only; give --input-size"):
        import_model(config(model=model))
    import_model(config(model=model, input_size="40,40"))
    (picture,) = drawn((50, 70))
    (found,) = predicted(config().output, picture)
    assert agree(found.class_map, by_hand(picture, Fine().eval(), size=(40, 40)).argmax(0))


# ---- where networks come from ----------------------------------------------------------------------------------------


def test_a_hugging_face_folder_states_its_pixels(segformer: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "hf", str(tmp_path / "out")
    shutil.copytree(segformer, folder)
    network = build_model(f"hf:{folder}", num_classes=5).eval()
    import_model(ImportConfig(f"hf:{folder}", "roads", output, class_map="0:0,1:1,2:1,3:0,4:0"))
    shutil.rmtree(folder)
    (picture,) = drawn((70, 90))
    (found,) = predicted(output, picture)
    p = by_hand(picture, network, size=(48, 64), mean=(0.5, 0.4, 0.3), std=(0.229, 0.224, 0.225))
    assert agree(found.class_map, np.array([0, 1, 1, 0, 0])[p.argmax(0)])
    import_model(ImportConfig(f"hf:{segformer}", "roads", f"{output}2", class_map="0:0", input_size="none"))
    assert read_spec(f"{output}2").input_size is None


@pytest.mark.parametrize("prefix", ["", "network.", "module."])
def test_a_state_dict_of_smp(four: str, tmp_path: Path, prefix: str) -> None:
    name = "smp:Unet?encoder_name=resnet18&encoder_depth=3&decoder_channels=[16,8,8]"
    torch.manual_seed(2)
    network = build_model(name, num_classes=4).eval()
    state = {f"{prefix}{key}": value for key, value in network.network.state_dict().items()}
    torch.save(state, tmp_path / "smp.pth")
    output = str(tmp_path / "out")
    import_model(ImportConfig(name, four, output, weights=str(tmp_path / "smp.pth"), mean="0,0,0", std="1,1,1"))
    (picture,) = drawn((45, 61))
    (found,) = predicted(output, picture)
    expected = by_hand(picture, network, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert agree(found.class_map, expected.argmax(0))


def test_a_state_dict_with_an_auxiliary_head_and_other_classes(tmp_path: Path) -> None:
    """As torchvision publishes them: 21 classes, of which the class map keeps two."""
    from torchvision import models

    torch.manual_seed(2)
    theirs = models.get_model("fcn_resnet50", weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    torch.save(theirs.state_dict(), tmp_path / "fcn.pth")
    output, weights = str(tmp_path / "out"), str(tmp_path / "fcn.pth")
    with pytest.raises(InputError, match="do not match the label set; found 21 channels; expected 2 classes of roads"):
        import_model(ImportConfig("torchvision:fcn_resnet50", "roads", output, weights=weights))
    import_model(ImportConfig("torchvision:fcn_resnet50", "roads", output, weights=weights, class_map="0:0,7:1"))
    assert read_spec(output).class_map == (0, *[None] * 6, 1, *[None] * 13)


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_the_folder_needs_nothing_else_and_is_met_again(config: Callable[..., ImportConfig], tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(drawn((50, 70))[0]).save(picture)
    told = import_model(config(try_=str(picture)))
    assert told.startswith("imported: export:net.pt2") and f"drawn in {config().output}/try.png" in told
    with Image.open(tmp_path / "out" / "try.png") as shown:
        assert shown.height == 50 and shown.width > 140
        assert np.array_equal(np.asarray(shown)[:, :70], np.asarray(Image.open(picture)))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[0] == "model.json" and names[1].startswith("program-") and names[2:] == ["try.png"]
    assert import_model(config()).startswith("there already")
    with pytest.raises(InputError, match="holds another imported network.*--overwrite"):
        import_model(config(scale=1.0))
    assert read_spec(config().output).scale == 255
    import_model(config(scale=1.0, overwrite=True))
    assert read_spec(config().output).scale == 1
    (tmp_path / "net.pt2").unlink()
    program = next((tmp_path / "out").glob("program-*"))
    predicted(config().output, drawn((50, 70))[0])
    again = load_checkpoint(config().output)
    save_checkpoint(str(tmp_path / "copy"), *again)
    assert (tmp_path / "copy" / program.name).read_bytes() == program.read_bytes()
    program.write_bytes(program.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged checkpoint.*bytes"):
        load_checkpoint(config().output)


def test_a_reader_of_version_1_refuses_what_it_would_pass_over(config: Callable[..., ImportConfig]) -> None:
    import_model(config())
    text = json.loads(Path(config().output, "model.json").read_text())
    assert text["checkpoint_version"] == 2 and "input_size" not in text


@pytest.mark.parametrize("holds", ["a file", "a trained checkpoint"])
def test_another_folder_is_left_alone(config: Callable[..., ImportConfig], tmp_path: Path, holds: str) -> None:
    import_model(config())
    (tmp_path / "out" / "model.json").unlink()
    if holds == "a trained checkpoint":
        save_checkpoint(
            config().output,
            build_model("lightweight", num_classes=2),
            read_spec_of("lightweight"),
        )
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(InputError, match="output (is not empty|holds a checkpoint that was not imported)"):
        import_model(config(overwrite=True))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


def read_spec_of(model: str) -> Any:
    from pipeline.labels import load_label_set
    from pipeline.model_spec import ModelSpec

    return ModelSpec(model, {}, load_label_set("roads"))


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": None}, "--mean and --std are missing.*nothing says so"),
        ({"mean": "0.5,x,0.5"}, "--mean has a wrong value; found 0.5,x,0.5; expected numbers"),
        ({"mean": "0,0", "std": "1,1"}, "exported program for other pictures.*found 3 bands; expected 2"),
        ({"std": "1,1"}, "normalisation does not fit the bands; found 3 means and 2 standard deviations"),
        ({"std": "1,1,0"}, "normalisation out of range"),
        ({"scale": 0.0}, "normalisation out of range"),
        ({"channel_order": "grb"}, "channel order out of range; found grb"),
        ({"label_set": "camvid"}, "found 4 channels; expected 11 classes of camvid; give another --label-set"),
        ({"label_set": "roads", "class_map": "0:0,9:1"}, "a channel that the network does not have; found 9"),
        ({"label_set": "roads", "class_map": "0:0,1:2"}, "class map leads out of the label set; found class 2"),
        ({"class_map": "0:0,0:1"}, "--class-map has a wrong value; found 0:1; expected each channel once"),
        ({"class_map": "0-1"}, "--class-map has a wrong value; found 0-1; expected channel:class"),
        ({"input_size": "40"}, "input size is no height and width; found 40; expected H,W"),
        ({"input_size": "0,40"}, "input size is no height and width"),
        ({"input_size": "a,b"}, "--input-size has a wrong value"),
        ({"size_multiple": 0}, "--size-multiple out of range"),
        ({"weights": "x.pth"}, "--weights does not go with a network that brings its own"),
        ({"try_": "nowhere.jpg"}, "picture does not exist: nowhere.jpg"),
        ({"try_": __file__}, "picture cannot be read"),
        ({"model": "smp:Unet"}, "--weights is missing"),
        ({"model": "smp:Unet", "weights": "nowhere.pth"}, "weights file does not exist"),
        ({"model": "export:nowhere.pt2"}, "exported program does not exist"),
        ({"model": "hf:nowhere"}, "no Hugging Face model"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    config: Callable[..., ImportConfig], options: dict[str, Any], message: str
) -> None:
    given = config(**options)
    with pytest.raises(InputError, match=message) as caught:
        import_model(given)
    assert "\n" not in str(caught.value) and not Path(given.output).exists()


def test_sizes_that_do_not_go_together(config: Callable[..., ImportConfig], tmp_path: Path) -> None:
    model = export(Fine(), tmp_path / "fixed.pt2", torch.rand(1, 3, 48, 64))
    for options, message in (
        ({"input_size": "48,48"}, "does not take this input size; found 48x48; expected 48 x 64 px"),
        ({"size_multiple": 32}, "--size-multiple does not go with.*found 32; expected a divisor of 48 and 64"),
    ):
        with pytest.raises(InputError, match=message):
            import_model(config(model=model, **options))


def test_weights_of_another_network_are_named(four: str, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"weights of another network: the file lacks \d+ of \d+ keys"):
        import_model(ImportConfig("lightweight", four, str(tmp_path / "o"), weights=str(tmp_path / "a.pth")))


# ---- end to end ------------------------------------------------------------------------------------------------------


def test_import_segment_and_compare(
    config: Callable[..., ImportConfig],
    tmp_path: Path,
    run_job: Callable[..., Finished],
    ray_session: None,
) -> None:
    """The command imports, the segment job predicts on Ray, and the masks are those of a forward by hand."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures = {f"{i}.png": picture for i, picture in enumerate(drawn((60, 80), (41, 57), (60, 80), (130, 70)))}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / name)
    given = config(label_set="roads", class_map="0:1,1:0,3:1", channel_order="bgr", input_size="48,64")
    flags = [f"--{name.rstrip('_').replace('_', '-')}={value}" for name, value in vars(given).items() if value]
    done = run_job("import_model", *flags, "--try", folder / "0.png")
    assert done.code == 0 and done.stdout.startswith("imported: export:net.pt2"), done.stderr
    bad = run_job("import_model", *flags, "--tri", "x.png")
    assert bad.code == 2 and bad.error == "error: there is no option --tri; did you mean '--try'? see --help"
    segment(SegmentConfig(str(folder), given.output, str(tmp_path / "run"), num_predictors=1))
    rows = {row["path"]: row for row in read_predictions(str(tmp_path / "run"))}
    assert rows.keys() == pictures.keys()
    for name, picture in pictures.items():
        p = by_hand(picture, Small().eval(), bgr=True, size=(48, 64))
        expected = np.array([1, 0, 255, 1])[p.argmax(0)]
        assert agree(rows[name]["mask"], expected)
        assert rows[name]["class_pixels"] == [(rows[name]["mask"] == k).sum() for k in range(2)]
    whole = pq.read_table(tmp_path / "run" / "statistics").to_pylist()[0]
    predicted_pixels = np.array([sum(row["class_pixels"]) for row in rows.values()])
    assert sum(whole["class_pixels"]) == predicted_pixels.sum() < whole["pixels"]
    means = [row["mean_confidence"] for row in rows.values()]
    assert whole["mean_confidence"] == pytest.approx(np.average(means, weights=predicted_pixels), rel=1e-5)


def test_the_options_as_written() -> None:
    """`--try` is a word of Python; lists and mappings of a YAML file are the texts of the flags."""
    config = parse(ImportConfig, ["--model", "m", "--label-set", "voc", "--output", "o", "--try", "x.jpg"])
    assert config.try_ == "x.jpg"
    with pytest.raises(InputError, match="--try needs a value"):
        parse(ImportConfig, ["--model", "m", "--try"])
