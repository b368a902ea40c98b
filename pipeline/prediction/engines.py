"""What runs a network: torch as it is, machine code compiled for the shapes that come, or ONNX Runtime.

`eager` is the definition. The others give the same logits up to rounding, which can move single pixels where two
classes are all but equal; docs/performance.md has what was counted. Neither torch nor ONNX Runtime is imported until
an engine is built.

- `compiled`: torch.compile with frozen weights (inductor), one compilation a shape: up to 40 s for the first of a
  process, 7 s for each after it. After `MOST_SHAPES` shapes of a process the others run eagerly, so that a collection
  of any sizes does not compile for ever. Which those are depends on which pictures a process met first: what is true of
  every engine, that the same run gives the same masks, holds for `compiled` as far as collections of few sizes go.
- `onnx`: exported once for all sizes, else (a network that fixes its sizes while it is traced) once a shape, as above.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pipeline.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

Network = Callable[["Tensor"], "Tensor"]  # N x B x H x W float32 -> logits N x K x H x W

ENGINES = ("eager", "compiled", "onnx")
MOST_SHAPES = 8  # as torch's own recompile_limit
PREPARE_S = 300.0  # what a forward may take longer where it prepares an engine for its shape
_TOLERANCE = 1e-3  # of the largest logit; rounding alone stays two orders below


def require_engine(engine: str, device: str = "cpu", precision: str = "auto") -> None:
    """Raises InputError where there is no such engine, or it does not run here or with that device and precision."""
    if engine not in ENGINES:
        raise InputError(f"--engine: no {engine!r}", expected=", ".join(ENGINES), todo=nearest(engine, ENGINES) or None)
    if engine == "eager":
        return
    if device not in ("auto", "cpu"):
        raise InputError(f"--engine {engine} runs on CPUs only", found=f"--device {device}", todo="--engine eager")
    if precision not in ("auto", "float32"):
        raise InputError(f"--engine {engine} computes in float32 only", found=f"--precision {precision}")
    if engine == "compiled" and not shutil.which(os.environ.get("CXX") or "g++"):
        raise InputError(
            "--engine compiled needs a C++ compiler",
            found="no g++ on PATH",
            todo="install one (on Debian: apt-get install g++), name one in CXX, or use --engine onnx",
        )
    if engine == "onnx":
        for library in ("onnxruntime", "onnxscript"):
            if importlib.util.find_spec(library) is None:
                raise InputError(
                    f"--engine onnx: {library} is not installed",
                    todo="install it with: pip install 'ray-segmentation[onnx]'",
                )


def run_by(engine: str, network: nn.Module, examples: list[Tensor]) -> Network:
    """`network` (in eval mode, on a CPU) as `engine` runs it.

    `examples` are inputs of different sizes, all of which the network takes; none where it takes certain sizes only.
    Raises InputError where an engine cannot be built for this network.
    """
    if engine == "compiled":
        return _Compiled(network)
    if engine == "onnx":
        return _Onnx(network, examples)
    return network


class _Compiled:
    def __init__(self, network: nn.Module) -> None:
        import torch

        _use_own_cache()
        self._eager = network
        self._compiled: Network = torch.compile(network, dynamic=False)
        self._shapes: set[tuple[int, ...]] = set()

    def __call__(self, x: Tensor) -> Tensor:
        from torch._inductor import config

        if not _takes(self._shapes, x):
            return self._eager(x)
        # For the whole call: as an option of torch.compile `freezing` would come after the tracing, which has made the
        # weights inputs by then, and nothing would be frozen. One thread: an actor wants no pool of compilers beside it
        with config.patch(freezing=True, compile_threads=1):
            return self._compiled(x)


def _use_own_cache() -> None:
    """A folder of the process's own for what inductor compiles, unless one is named.

    A process killed while it compiles leaves an empty library behind, which in a shared folder is taken for whole ever
    after. The price is that each process begins from nothing.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    shared = default_cache_dir()
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", shared) == shared:  # torch itself sets it to that while it is imported
        folder = tempfile.mkdtemp(prefix="torchinductor-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder


class _Onnx:
    """Sessions of ONNX Runtime, with as many threads as torch has."""

    def __init__(self, network: nn.Module, examples: list[Tensor]) -> None:
        self._eager = network
        self._batch = len(examples[0]) if examples else 0
        self._any_size = _exported_for_any_size(network, examples) if examples else None
        self._by_shape: dict[tuple[int, ...], Network] = {}
        self._shapes: set[tuple[int, ...]] = set()

    def __call__(self, x: Tensor) -> Tensor:
        if self._any_size is not None and len(x) == self._batch:
            return self._any_size(x)
        if not _takes(self._shapes, x):
            return self._eager(x)
        shape = tuple(x.shape)
        if shape not in self._by_shape:
            self._by_shape[shape] = _exported(self._eager, shape, any_size=False)
        return self._by_shape[shape](x)


def _takes(shapes: set[tuple[int, ...]], x: Tensor) -> bool:
    """Whether an engine that prepares for each shape is used for this one."""
    shape = tuple(x.shape)
    if shape not in shapes and len(shapes) < MOST_SHAPES:
        shapes.add(shape)
    return shape in shapes


def _exported_for_any_size(network: nn.Module, examples: list[Tensor]) -> Network | None:
    """None where what the exporter made holds for the size it has seen only."""
    import torch

    try:
        found = _exported(network, tuple(examples[1].shape), any_size=True)
        with torch.inference_mode():
            for x in examples:
                expected = network(x)
                if (found(x) - expected).abs().max() > _TOLERANCE * expected.abs().max():
                    return None
    except Exception:  # of the exporter or of ONNX Runtime, which have kinds of their own
        return None
    return found


def _exported(network: nn.Module, shape: tuple[int, ...], *, any_size: bool) -> Network:
    """A session of ONNX Runtime. Raises RuntimeError where the network cannot be exported."""
    import onnxruntime
    import torch

    dim = torch.export.Dim
    sides = {0: dim.STATIC, 1: dim.STATIC, 2: dim.AUTO, 3: dim.AUTO}
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # of the exporter's own future
        program = torch.onnx.export(
            network,
            (torch.zeros(shape),),
            dynamic_shapes=(sides,) if any_size else None,
            input_names=["pixels"],
            verbose=False,
            dynamo=True,
        )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    data = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"pixels": x.contiguous().numpy()})[0])

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which logs every step."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
