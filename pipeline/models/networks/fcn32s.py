"""`fcn32s`: no skips: the scores of fc7, upsampled by 32.

Paper, what is new, shapes and departures: the family's trunk, pipeline/models/fcn.py.
"""

from __future__ import annotations

from pipeline.models.networks.fcn import FCN


class FCN32s(FCN):
    """The coarsest FCN: N x B x H x W float -> logits N x K x H x W. Options: see `FCN`."""

    levels = ()
