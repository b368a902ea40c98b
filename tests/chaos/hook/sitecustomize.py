"""Python runs this first in every process whose PYTHONPATH names this folder: the chaos cluster's workers and decoders.

SEGMENTATION_CHAOS_HALT holds a `Halt` for worker processes; with SEGMENTATION_CHAOS_NETWORK their networks are short of
memory. In a decoding process a picture whose bytes hold one of `FAULTS` does what it says: the fault lies in the
picture, and strikes where a real one would.
"""

import ctypes
import importlib.abc
import importlib.util
import os
import signal
import sys
import time

FAULTS = {
    b"chaos: segfault": lambda: ctypes.string_at(0),
    b"chaos: hang": lambda: time.sleep(1e6),
    b"chaos: slow": lambda: time.sleep(0.2),
    b"chaos: 100 GB": lambda: bytearray(100 * 10**9),
    b"chaos: exit": lambda: os._exit(3),
    b"chaos: killed once": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def break_decoder(picture):
    """Wrap `pipeline.decode.picture.decode`."""
    plain = picture.decode

    def decode(data, **options):
        for mark, strike in FAULTS.items():
            if mark in data and (not mark.endswith(b"once") or is_first(data)):
                strike()
        return plain(data, **options)

    picture.decode = decode


def is_first(data):
    """Whether this picture struck nobody before: the file that it names is made then."""
    path = data.partition(b"chaos: killed once in ")[2].partition(b";")[0].decode()
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def starve_network(module):
    """Wrap the forward: two pictures fit into memory, one of 16 x 64 does not even alone; 64 x 16 raises."""
    import torch

    plain = module.TorchvisionModel.forward

    def forward(self, x):
        if len(x) > 2 or x.shape[-2:] == (16, 64):
            raise torch.OutOfMemoryError(f"out of memory for {tuple(x.shape)}")
        if x.shape[-2:] == (64, 16):
            raise ValueError("too much magenta")
        return plain(self, x)

    module.TorchvisionModel.forward = forward


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls `change(module)` when a module has been imported."""

    def __init__(self, name, change):
        self.name, self.change = name, change

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        plain = spec.loader.exec_module

        def exec_module(module):
            plain(module)
            self.change(module)

        spec.loader.exec_module = exec_module
        return spec


if "pipeline.decode.serve" in sys.orig_argv:
    sys.meta_path.insert(0, AfterImport("pipeline.decode.picture", break_decoder))
elif "SEGMENTATION_CHAOS_HALT" in os.environ:
    from chaos.steps import Halt

    Halt.from_json(os.environ["SEGMENTATION_CHAOS_HALT"]).install()
elif "SEGMENTATION_CHAOS_NETWORK" in os.environ:
    sys.meta_path.insert(0, AfterImport("pipeline.models.providers.torchvision_model", starve_network))
