"""Notes when each prediction is made, in every process of a peer, without a line in any of them.

Python imports `sitecustomize` by itself where PYTHONPATH leads to it. While `THROUGHPUT_TRACE` names a folder,
`Predictor.predict` is wrapped as soon as its module is loaded: each call appends "monotonic seconds, pictures, seconds
it took" to a file of its process. The clock is the machine's, so the notes of all processes go together.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from typing import Any

_TRACED = "pipeline.prediction.predictor"


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _TRACED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def create_module(self, spec: Any) -> Any:
        return self._inner.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self._inner.exec_module(module)
        _wrap(module.Predictor)


def _wrap(predictor: Any) -> None:
    import time

    predict = predictor.predict
    file = open(os.path.join(os.environ["THROUGHPUT_TRACE"], f"{os.getpid()}.txt"), "a", buffering=1)

    def traced(self: Any, pictures: Any) -> Any:
        started_s = time.monotonic()
        answers = predict(self, pictures)
        ended_s = time.monotonic()
        file.write(f"{ended_s:.6f} {len(pictures)} {ended_s - started_s:.6f}\n")
        return answers

    predictor.predict = traced


if os.environ.get("THROUGHPUT_TRACE"):
    sys.meta_path.insert(0, _Finder())
