"""The command on a unit's page: what vital-visualize is to be told, without a path of this machine."""

from __future__ import annotations

import pytest

from vital_exp.atlases.remake import named
from vital_exp.reporting.share import PathNames


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("references.root=/home/ann/my photos", "references.root=my photos"),
        ("references.root=~/photos", "references.root=photos"),
        ("references.root=photos", "references.root=photos"),
        ("model.factory=/srv/net.py:build", "model.factory=net.py:build"),
        ("target.checkpoint='/data/sae.safetensors'", "target.checkpoint=sae.safetensors"),
        ("target.concepts='/data/my concepts'", "target.concepts='my concepts'"),
        ("model.arguments={path: /data/a.npy, depth: 20}", "model.arguments={path: a.npy, depth: 20}"),
        ("references.count=20", "references.count=20"),
        ("target.threshold=0.5", "target.threshold=0.5"),
    ],
)
def test_a_word_has_the_last_part_of_a_path(word: str, shown: str) -> None:
    assert named(word, PathNames()) == shown
