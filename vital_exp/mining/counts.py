"""Checks of mining's counts (k, batch_size, workers, save_every). Imports no torch, so that commands start quickly."""

from __future__ import annotations

from collections.abc import Mapping

from vital_exp.values import whole_number

IMAGES_PER_UNIT = 50  # that drive a unit most, as many that drive it least, and patches; k in conf/mine.yaml too
LEAST = {"k": 1, "batch_size": 1, "workers": 0, "save_every": 1}


def check_counts(settings: Mapping[str, object]) -> None:
    """Check the counts among ``settings``; raises UsageError for the first that is not a whole number, or too small."""
    for key, least in LEAST.items():
        whole_number(key, settings[key], least)
