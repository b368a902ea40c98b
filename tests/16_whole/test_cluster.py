"""cluster.yaml: Ray's own validator takes it, and it means what it should (the validator passes misspelt settings)."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from conftest import PROJECT
from ray.autoscaler._private.util import prepare_config, validate_config

WRITTEN: dict[str, Any] = yaml.safe_load((PROJECT / "cluster.yaml").read_text())
CONSTRAINTS = (PROJECT / "constraints.txt").read_text()


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The configuration with Ray's defaults filled in, as `ray up` sees it."""
    config = prepare_config(WRITTEN)
    validate_config(config)
    return config


def workers(cluster: dict[str, Any]) -> dict[str, Any]:
    types = dict(cluster["available_node_types"])
    del types[cluster["head_node_type"]]
    return types


def test_head_runs_no_work(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"]["CPU"] == 0 and not head["resources"].get("GPU")
    assert "InstanceMarketOptions" not in head["node_config"]  # a head on spot would take the whole night with it
    assert not any("--num-cpus" in command for command in cluster["head_start_ray_commands"])


def test_workers_have_resources_spot_and_bounds(cluster: dict[str, Any]) -> None:
    types = workers(cluster)
    assert any(t["resources"].get("GPU", 0) > 0 for t in types.values()), "no GPU workers"
    assert any(not t["resources"].get("GPU", 0) for t in types.values()), "no CPU workers for decoding"
    for name, node_type in types.items():
        assert node_type["resources"]["CPU"] > 0, name
        assert node_type["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot", name
        assert {"min_workers", "max_workers"} <= WRITTEN["available_node_types"][name].keys(), name
        assert 0 <= node_type["min_workers"] <= node_type["max_workers"] and node_type["max_workers"] > 0, name
        assert node_type["max_workers"] <= cluster["max_workers"], name
    assert cluster["idle_timeout_minutes"] > 0


def test_only_known_node_settings(cluster: dict[str, Any]) -> None:
    """The names are EC2's own: boto3's model of RunInstances knows every one of them."""
    botocore = pytest.importorskip("botocore.session")
    model = botocore.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, node_type in cluster["available_node_types"].items():
        check_names(node_type["node_config"], model, where=name)


def check_names(value: Any, shape: Any, where: str) -> None:
    if shape.type_name == "structure":
        assert value.keys() <= shape.members.keys(), f"{where}: unknown {value.keys() - shape.members.keys()}"
        for key, inner in value.items():
            check_names(inner, shape.members[key], f"{where}.{key}")
    elif shape.type_name == "list":
        for index, inner in enumerate(value):
            check_names(inner, shape.member, f"{where}[{index}]")
    elif getattr(shape, "enum", None) and where.endswith(("MarketType", "VolumeType")):
        assert value in shape.enum, f"{where}: {value}"


def test_token_authentication_is_on_everywhere(cluster: dict[str, Any]) -> None:
    tokens = [remote for remote, local in cluster["file_mounts"].items() if local == "~/.ray/auth_token"]
    assert tokens == ["/home/ubuntu/.ray/auth_token"]
    for side in ("head", "worker"):
        commands = cluster[f"{side}_start_ray_commands"]
        assert any("ray start" in command for command in commands)
        for command in commands:
            assert "RAY_AUTH_MODE=token" in command and "RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token" in command
    assert not any("--dashboard-host=0.0.0.0" in command for command in cluster["head_start_ray_commands"])


def test_a_stopped_job_has_time_to_commit(cluster: dict[str, Any]) -> None:
    (command,) = [c for c in cluster["head_start_ray_commands"] if "ray start" in c]
    assert "RAY_JOB_STOP_WAIT_TIME_S=120" in command.split("ray start")[0]


def test_same_ray_and_python_as_the_constraints(cluster: dict[str, Any]) -> None:
    setup = "\n".join(cluster["setup_commands"])
    (ray_version,) = re.findall(r"^ray==(\S+)$", CONSTRAINTS, re.MULTILINE)
    (python_version,) = re.findall(r"Python (\d+\.\d+) and these", CONSTRAINTS)
    assert re.findall(r"ray(?:\[[\w,]+\])?==([\w.]+)", setup) == [ray_version]
    assert re.findall(r"--python (\d[\w.]*)", setup) == [python_version]
    assert "-c constraints.txt" in setup and "-e ." in setup


def test_what_is_mounted_is_there_and_small() -> None:
    """Ray reads every mounted file, whatever rsync leaves out: no .git, no .venv, no runs."""
    for local in WRITTEN["file_mounts"].values():
        if not local.startswith("~"):
            assert (PROJECT / local).exists(), local
            assert local not in (".", "runs", ".venv", ".git")
