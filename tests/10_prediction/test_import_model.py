"""Importing networks: where they come from, the folder that is left, and the masks of the command and of a run."""

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
from exported import Small
from PIL import Image
from small_import import agree, by_hand, drawn, four_classes, import_options, predicted

from pipeline import read_predictions
from pipeline.errors import InputError
from pipeline.models import build_model
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.models.spec import read_spec
from pipeline.prediction.import_config import ImportConfig
from pipeline.prediction.import_model import import_model
from pipeline.runtime.options import parse
from pipeline.segment.config import SegmentConfig
from pipeline.segment.job import segment

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
def test_a_state_dict_of_smp(tmp_path: Path, prefix: str) -> None:
    name = "smp:Unet?encoder_name=resnet18&encoder_depth=3&decoder_channels=[16,8,8]"
    torch.manual_seed(2)
    network = build_model(name, num_classes=4).eval()
    state = {f"{prefix}{key}": value for key, value in network.network.state_dict().items()}
    torch.save(state, tmp_path / "smp.pth")
    output = str(tmp_path / "out")
    import_model(
        ImportConfig(name, four_classes(tmp_path), output, weights=str(tmp_path / "smp.pth"), mean="0,0,0", std="1,1,1")
    )
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


def test_the_folder_needs_nothing_else_and_is_met_again(tmp_path: Path) -> None:
    config = import_options(tmp_path)
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


def test_a_reader_of_version_1_refuses_what_it_would_pass_over(tmp_path: Path) -> None:
    config = import_options(tmp_path)
    import_model(config())
    text = json.loads(Path(config().output, "model.json").read_text())
    assert text["checkpoint_version"] == 2 and "input_size" not in text


@pytest.mark.parametrize("holds", ["a file", "a trained checkpoint"])
def test_another_folder_is_left_alone(tmp_path: Path, holds: str) -> None:
    config = import_options(tmp_path)
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
    from pipeline.models.spec import ModelSpec

    return ModelSpec(model, {}, load_label_set("roads"))


# ---- end to end ------------------------------------------------------------------------------------------------------


def test_import_segment_and_compare(tmp_path: Path, run_job: Callable[..., Finished], ray_session: None) -> None:
    """The command imports, the segment job predicts on Ray, and the masks are those of a forward by hand."""
    config = import_options(tmp_path)
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
