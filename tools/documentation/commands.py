"""The reference of the commands: what ``--help`` prints, the groups, and the keys beside these."""

from __future__ import annotations

from tools.documentation import configuration
from vital_exp.__main__ import COMMANDS
from vital_exp.commands.help_text import help_text
from vital_exp.config_tree import groups
from vital_exp.mining.index import SCHEMA

PAGE = "reference/commands.md"
INTRODUCTION = """# Commands

Each command takes `group=option` and `key=value`, and prints its keys and examples with `--help`. With `-m`, commas
separate several values of a key, and each combination of values becomes a run. Each command is also
`python -m vital_exp <name>`. Its [exit codes](exit-codes.md) have a page of their own.
"""

INDEX = f"""The file `index.sqlite` holds these tables:

```sql
{SCHEMA.strip()}
```
"""


def pages() -> dict[str, str]:
    """Return the page of the commands, by its path in the site."""
    return {PAGE: "\n".join([INTRODUCTION, *(section(name) for name in COMMANDS)])}


def section(name: str) -> str:
    """Return the section of a command: its help, its groups and its keys."""
    file = next(file for file in configuration.files() if not file.group and file.name == name)
    own = [configuration.link(group) for group in groups(name)]
    listed = f"Groups: {', '.join(own)}." if own else "It has no groups."
    help_lines = ["```text", help_text(name).rstrip(), "```"]
    return "\n".join(
        [f"## vital-{name}", "", *help_lines, "", listed, "", *configuration.key_table(list(file.keys), file)]
    )
