"""Joining Ray: the cluster that `RAY_ADDRESS` names, or a local one of at least four logical CPUs.

A job that said "local" under `ray job submit` would start a private Ray inside the head and ignore the cluster, and
everything would look well; so the address decides, never the code.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from pipeline import storage
from pipeline.errors import InputError, Stopped

# Carried to a cluster's workers. Ray writes the environment that it gives them into its logs and shows it on the
# dashboard, so what may hold credentials goes another way, and is set before a worker's first task.
_PLAIN_PREFIX, _SECRET_PREFIX = "SEGMENTATION_", "AWS_"
_WORKER_ENV = {
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads beside another busy process took 47 times as long
}
_REST_S = 0.03  # a step of the loop takes 1 to 2 ms, a block far longer than this to make
_LOCAL_CPUS = 4  # each stage wants a CPU of its own: one or two deadlock


def connect(written: Iterable[str], *, shared_filesystem: bool = False, local_cpus: int = _LOCAL_CPUS) -> None:
    """Join the cluster, or start a local Ray. Does nothing where this process has joined already.

    `written` are the URIs that the job will write: a local path on more than one node (unless `shared_filesystem`)
    raises InputError. A local Ray counts at least `local_cpus` logical CPUs.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # Ray listens on every interface; a token of this run's own keeps others out
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's announced default; ends its warning
    import ray

    if not ray.is_initialized():
        options: dict[str, Any] = {
            "logging_level": logging.WARNING,
            "log_to_driver": False,  # every actor start prints a harmless ERROR line (ray#53727)
        }
        if address:
            plain = {k: v for k, v in os.environ.items() if k.startswith(_PLAIN_PREFIX)}
            secret = {k: v for k, v in os.environ.items() if k.startswith(_SECRET_PREFIX)}
            env = {"env_vars": {**_WORKER_ENV, **plain}, "worker_process_setup_hook": _environment_setter(secret)}
            ray.init(address=address, runtime_env=env, **options)
        else:
            # inherited by workers: with a runtime environment Ray starts them only when they are asked for
            wait_passively()
            cpus = max(local_cpus, os.cpu_count() or 1)
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
        stop_on_sigterm()  # after ray.init, which sets a handler of its own
    if not shared_filesystem:
        _refuse_local_on_many_nodes(written)
    configure_data()


def wait_passively() -> None:
    """Let OpenMP threads of processes that start from now on (and of this one, before torch is loaded) wait without
    spinning."""
    for name, value in _WORKER_ENV.items():
        os.environ.setdefault(name, value)


def stop_on_sigterm() -> None:
    """From now on SIGTERM raises Stopped in the main thread."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped("stopped on request; resume with the same command")

    try:
        signal.signal(signal.SIGTERM, stop)
    except ValueError:
        pass  # not the main thread: the caller has handlers of its own


def refuse_relative_under_submit(written: Iterable[str]) -> None:
    """Under `ray job submit` the working folder is a copy in a node's cache: InputError for a relative local path."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return
    for uri in written:
        if storage.is_local(uri) and not os.path.isabs(uri.split("://", 1)[-1]):
            raise InputError(
                "a submitted job cannot write to a relative path: its working folder is a copy that is thrown away",
                where=uri,
                expected="s3://... or an absolute path",
            )


def beside_driver(kind: type) -> Any:
    """An actor of this class on the driver's node; it takes no CPU and lives as long as its handle."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=here).remote()


def num_gpus() -> int:
    """GPUs of the cluster as it is now."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def num_cores() -> int:
    """Cores that can work at once: this machine's (a local Ray may count more), or the cluster's CPUs."""
    if os.environ.get("RAY_ADDRESS"):
        import ray

        return max(1, int(ray.cluster_resources().get("CPU", 1)) - 1)  # one is left to reading and writing
    return os.cpu_count() or 1


def _environment_setter(variables: dict[str, str]) -> Callable[[], None]:
    """A function that sets these variables; every worker calls it first. Ray keeps it, pickled by value, in the head's
    memory."""

    def set_variables() -> None:
        os.environ.update(variables)

    return set_variables


def cores_of_a_node() -> int:
    """CPUs of the smallest node that has any. A predictor with that many threads fits everywhere."""
    import ray

    if not os.environ.get("RAY_ADDRESS"):
        return os.cpu_count() or 1
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return min((count for count in cpus if count), default=1)


def configure_data() -> None:
    """Settings of Ray Data for Datasets made by this process from now on.

    They hold for one process: code that makes a Dataset elsewhere (Ray Train calls such a function in a process of its
    own) has to call this there.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    # the default of 30 minutes kills a job that waits for spot machines
    if hasattr(context, "execution_no_progress_timeout_s"):
        context.execution_no_progress_timeout_s = 6 * 3600
    # spot machines also die while an actor starts on them; the default of 0 ends the job at the first
    if hasattr(context, "max_consecutive_actor_init_deaths"):
        context.max_consecutive_actor_init_deaths = 5
    _pause_scheduler(context)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    for name in ("ray.data", "ray.data._internal.execution.streaming_executor"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _pause_scheduler(context: Any) -> None:
    """Let Ray Data's scheduling loop rest between its steps.

    Where a consumer is slower than its producers (a training loop always is), finished blocks wait unread, `ray.wait`
    returns at once, and the loop spins: it took 0.87 of a core beside training on two cores, 0.02 with this (Ray 2.60).
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    if not any(kind.__name__ == "Rest" for kind in context.custom_execution_callback_classes):

        class Rest(ExecutionCallback):  # made here: Ray is imported only by who joins it, and pickles it by value
            def on_execution_step(self, executor: Any) -> None:
                time.sleep(_REST_S)

        context.custom_execution_callback_classes.append(Rest)


def _refuse_local_on_many_nodes(written: Iterable[str]) -> None:
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    # the driver's node counts, work or not; and where it runs none, nodes that do are still to come
    if len(nodes) == 1 and nodes[0]["Resources"].get("CPU", 0) > 0:
        return
    for uri in written:
        if storage.is_local(uri):
            raise InputError(
                "a local path is not the same place on every node of this cluster",
                where=uri,
                found=f"{len(nodes)} nodes",
                expected="s3://...",
                todo="give --shared-filesystem if every node sees that path",
            )
