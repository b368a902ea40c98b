"""The options that jobs with an output folder share. The folder itself, `output`, is a field of each job."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.runtime.options import OUTPUT, option


@dataclass(kw_only=True)
class OutputConfig:
    """What a job may do to its output folder."""

    overwrite: bool = option(False, "Replace another run in the output folder.", group=OUTPUT)
    single_writer: bool = option(
        False,
        "Promise that no other run writes there, for a store that cannot put a file only if it is absent.",
        group=OUTPUT,
    )


@dataclass(kw_only=True)
class ClusterOutputConfig(OutputConfig):
    """The same for jobs whose workers write."""

    shared_filesystem: bool = option(
        False, "Local paths are the same place on every node of the cluster.", group=OUTPUT
    )
