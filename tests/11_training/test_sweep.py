"""Studies and sweeps: what a study may say, how the paper is compared with, and a whole small sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from pipeline.errors import InputError
from pipeline.scenes import write_scenes
from pipeline.training.studies.comparison import differences, tables, verdict
from pipeline.training.studies.job import SweepConfig, sweep
from pipeline.training.studies.study import Claim, load_study

ABLATIONS = sorted((Path(__file__).parent.parent.parent / "configs" / "ablations").glob("*.yaml"))
STUDY = {
    "title": "Losses",
    "paper": "A paper",
    "seeds": [0, 1],
    "metrics": ["miou", "pixel_accuracy"],
    "training": {"model": "lightweight", "label_set": "scenes", "crop": "32,32", "model_options": {"dropout": 0.0}},
    "variants": {
        "CE": {"training": {"loss": "cross_entropy"}, "published": {"miou": 71.0}},
        "CE / Dice": {"training": {"model_options": {"output_stride": 32}}, "published": {"miou": 72.5}},
    },
    "claims": [{"claim": "Dice helps", "better": "CE / Dice", "worse": "CE"}],
}


@pytest.fixture
def study_file(tmp_path: Path):
    def write(**changes: object) -> str:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}))
        return str(path)

    return write


def test_a_variant_changes_what_it_names_and_keeps_the_rest(study_file) -> None:
    study = load_study(study_file())
    first, second = study.variants
    assert study.options(first) == {**STUDY["training"], "loss": "cross_entropy"}
    assert study.options(second)["model_options"] == {"dropout": 0.0, "output_stride": 32}
    assert [variant.folder for variant in study.variants] == ["CE", "CE-Dice"]
    assert study.claims == (Claim("Dice helps", "miou", "CE / Dice", "CE", published=1.5),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "unknown key 'sedes'.*did you mean 'seeds'"),
        ({"seeds": [1, 1]}, "seeds of a study are different integers"),
        ({"variants": {}}, "study needs variants"),
        ({"variants": {"a b": {}, "a  b": {}}}, "study needs variants of different names"),
        ({"variants": {"a": {"loss": "x"}}}, "variant 'a' of a study.*expected training:, published:"),
        ({"variants": {"a": {"published": {"moiu": 1}}}}, "no metric 'moiu'.*did you mean 'miou'"),
        ({"claims": [{"claim": "x", "better": "CE", "worse": "Dice"}]}, "names no variant 'Dice'"),
        ({"claims": [{"claim": "x", "better": "CE"}]}, "claim of a study is incomplete.*expected worse"),
        ({"training": [1]}, "'training' of a study is not a mapping"),
    ],
)
def test_a_wrong_study_is_named(study_file, changes, message) -> None:
    with pytest.raises(InputError, match=message):
        load_study(study_file(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"a": {"training": {"lose": "dice"}}}}, "no option 'lose'.*did you mean 'loss'"),
        ({"variants": {"a": {"training": {"loss": "dise"}}}}, "--loss: no 'dise'.*did you mean 'dice'"),
        ({"variants": {"a": {"training": {"model_options": {"rates": [0]}}}}}, "rates out of range"),
    ],
)
def test_a_wrong_option_is_met_before_anything_is_trained(study_file, tmp_path, changes, message) -> None:
    study = study_file(**{**changes, "claims": []})
    with pytest.raises(InputError, match=message):
        sweep(SweepConfig(study, str(tmp_path), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_the_table_has_the_papers_figures_beside_ours(study_file) -> None:
    study = load_study(study_file())
    results = {
        ("CE", 0): {"miou": 0.50, "pixel_accuracy": 0.9},
        ("CE", 1): {"miou": 0.60, "pixel_accuracy": 0.9},
        ("CE / Dice", 0): {"miou": 0.51, "pixel_accuracy": 0.9},
        ("CE / Dice", 1): {"miou": 0.63, "pixel_accuracy": 0.8},
    }
    assert tables(study, results).splitlines() == [
        "| variant | paper mIoU | our mIoU | our PA |",
        "| -- | --: | --: | --: |",
        "| CE | 71 | 55.00 (50.00 to 60.00) | 90.00 (90.00 to 90.00) |",
        "| CE / Dice | 72.5 | 57.00 (51.00 to 63.00) | 85.00 (80.00 to 90.00) |",
        "",
        "| claim | paper | ours | spread | same direction? |",
        "| -- | --: | --: | --: | -- |",
        "| Dice helps | +1.50 | +2.00 | +1.00 to +3.00 | yes |",
    ]
    assert differences(study.claims[0], study, results) == pytest.approx([1, 3])


def test_a_claim_holds_only_where_every_seed_says_so() -> None:
    claim = Claim("", "miou", "a", "b", published=0.8)
    assert verdict(claim, [0.1, 0.2]) == "yes"
    assert verdict(claim, [0.1, -0.2]) == "unclear: 1 of 2 seeds"
    assert verdict(claim, [-0.1, -0.2]) == "no"
    assert verdict(Claim("", "miou", "a", "b", published=-0.8), [-0.1]) == "yes"


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_the_published_studies_can_be_trained(path: Path) -> None:
    """Each variant builds, from the options that the sweep would train it with."""
    from pipeline.runtime.options import parse_values
    from pipeline.training.job import TrainConfig, check_options

    study = load_study(str(path))
    assert study.paper and study.claims and len(study.seeds) >= 3
    for variant in study.variants:
        with torch.device("meta"):
            check_options(parse_values(TrainConfig, {**study.options(variant), "source": "x", "output": "y"}))


@pytest.mark.slow
def test_a_sweep_trains_every_variant_and_prints_the_table(study_file, tmp_path, ray_session, capsys) -> None:
    write_scenes(str(tmp_path / "scenes"), 6, 2)
    study = study_file(training={**STUDY["training"], "batch_size": 2, "max_steps": 2}, seeds=[3, 4])
    config = SweepConfig(study, str(tmp_path / "scenes"), str(tmp_path / "out"), seeds=1, parallel=1, device="cpu")
    where = sweep(config)
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out and "2 variants with 1 seeds each" in where
    assert "| CE / Dice | 72.5 |" in table and "Dice helps" in table
    assert {p.parent.name + p.name for p in (tmp_path / "out" / "trials").glob("*/*")} == {"CEseed-3", "CE-Diceseed-3"}
    written = (tmp_path / "out" / "table.md").stat().st_mtime_ns
    sweep(config)  # complete: says the table again, trains nothing
    assert table in capsys.readouterr().out
    assert (tmp_path / "out" / "table.md").stat().st_mtime_ns == written
