"""`fcn16s`: the scores of fc7 and pool4, upsampled by 16.

Paper, what is new, shapes and departures: the family's trunk, pipeline/models/fcn.py.
"""

from __future__ import annotations

from pipeline.models.networks.fcn import FCN


class FCN16s(FCN):
    """FCN with one skip: N x B x H x W float -> logits N x K x H x W. Options: see `FCN`."""

    levels = (4,)
