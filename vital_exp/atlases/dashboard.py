"""The table of an atlas's units as an artifact of Weights & Biases."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from vital_exp.atlases.store import Store, UnitRow
from vital_exp.visualization import wandb_server

JOB_TYPE = "atlas"
LEFT_OUT = ("histogram",)


def send_units(store: Store, project: str, offline: bool) -> str:
    """Send the table of units as the artifact ``atlas-<network>``, with atlas.sqlite; return where the artifact is.

    Raises:
        UsageError: online without a login.
    """
    import wandb

    meta = store.meta()
    described = {key: meta.get(key) for key in ("network", "images", "method", "seed", "versions")}
    arguments: dict[str, Any] = {
        **{"project": project, "job_type": JOB_TYPE, "name": f"atlas {store.folder.resolve().name}"},
        **{"dir": str(store.folder.resolve()), "config": described},
    }
    run = wandb_server.start(lambda more: wandb.init(**arguments, **more), offline, "wandb")
    name = re.sub(r"[^A-Za-z0-9._-]", "-", f"atlas-{meta['network']}")
    artifact = wandb.Artifact(name, type=JOB_TYPE, metadata=described)
    columns = [one.name for one in fields(UnitRow) if one.name not in LEFT_OUT]
    rows = [[getattr(row, column) for column in columns] for row in store.units()]
    artifact.add(wandb.Table(columns=list(columns), data=rows), "units")
    artifact.add_file(str(store.path))
    run.log_artifact(artifact)
    told = wandb_server.where(run)
    run.finish()
    return told
