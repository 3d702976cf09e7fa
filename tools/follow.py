"""Follow a run's targets through the code: the files that they enter, and the climbs back to a higher layer.

    python tools/follow.py                                                    # a class of the embedded network
    python tools/follow.py target=channel target.layer=layer2 target.index=3  # a channel; any keys of vital-visualize

The script runs vital-visualize for two steps in a temporary folder and watches every call of the package's functions. A
target enters a function as one of its arguments, alone or in a list or tuple; the target's own methods do not count. A
climb is an entry into a file of a higher layer than the entry before (the layers of import-linter's contract).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import FrameType

import figures

import vital_exp
from vital_exp.commands.visualize import main as visualize
from vital_exp.targets.unit import Target

PACKAGE = Path(vital_exp.__file__).parent
OWN = "vital_exp.targets.unit"
GIVEN = ("model=embedded_resnet", "target.index=3", "steps=2")


class Follower:
    """The files that targets enter, in order; one entry where several calls in one file follow each other.

    Attributes:
        stays: the module name of each file entered.
    """

    def __init__(self) -> None:
        self.stays: list[str] = []

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Note a call that is handed a target; the form that ``sys.setprofile`` wants."""
        if event != "call" or (module := _module(frame.f_code.co_filename)) in ("", OWN):
            return
        if self.stays[-1:] != [module] and any(map(_is_target, _arguments(frame))):
            self.stays.append(module)

    @property
    def climbs(self) -> list[tuple[str, str]]:
        """The pairs of entries that follow each other of which the second lies in a higher layer."""
        return [(one, other) for one, other in pairwise(self.stays) if figures.layer_of(other) < figures.layer_of(one)]


@cache
def _module(file: str) -> str:
    """Return the module name of a file of the package, and nothing for another file."""
    path = Path(file)
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) if PACKAGE in path.parents else ""


def _arguments(frame: FrameType) -> list[object]:
    code = frame.f_code
    return [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]]


def _is_target(value: object) -> bool:
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, Target)


def follow(keys: Sequence[str]) -> Follower:
    """Run vital-visualize with these keys and return where its targets went.

    Raises:
        SystemExit: the run failed.
    """
    follower = Follower()
    given = [key for key in GIVEN if key.split("=")[0] not in {one.split("=")[0] for one in keys}]
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(follower)
        try:
            visualize([*given, *keys, f"hydra.run.dir={folder}/run", f"cache_dir={folder}/cache"])
        except SystemExit as end:
            if end.code:
                raise
        finally:
            sys.setprofile(None)
    return follower


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the way of the targets of a run."""
    follower = follow(sys.argv[1:] if arguments is None else arguments)
    print("\n".join(follower.stays))
    print(f"files entered: {len(set(follower.stays))}\nclimbs: {len(follower.climbs)}")


if __name__ == "__main__":
    main()
