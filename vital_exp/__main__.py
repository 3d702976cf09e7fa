"""``python -m vital_exp <command> ...`` runs a command where its console script is not installed."""

from __future__ import annotations

import sys
from importlib import import_module

from vital_exp.errors import nearest

COMMANDS = ("visualize", "mine", "evaluate", "report", "audit", "atlas")


def main() -> None:
    """Run the named command with the other arguments."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        near = nearest(name, COMMANDS)
        hint = f" (did you mean {near[0]}?)" if near else ""
        print(f"python -m vital_exp {name}: one of {', '.join(COMMANDS)}{hint}", file=sys.stderr)
        sys.exit(2)
    import_module(f"vital_exp.commands.{name}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
