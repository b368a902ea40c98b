"""`fcn8s`: the scores of fc7, pool4 and pool3, upsampled by 8.

Paper, what is new, shapes and departures: the family's trunk, pipeline/models/fcn.py.
"""

from __future__ import annotations

from pipeline.models.networks.fcn import FCN


class FCN8s(FCN):
    """FCN with two skips: N x B x H x W float -> logits N x K x H x W. Options: see `FCN`."""

    levels = (4, 3)
