"""docs/configuration.md, written from the configuration itself: `python -m shared.config_docs`."""

from __future__ import annotations

import dataclasses
import json
import sys

from shared.config import Config, describe

_HEAD = """# Configuration

Written by `python -m shared.config_docs > docs/configuration.md`; do not edit by hand.

A run is told what to do by a TOML file (`--config FILE`) and by single overrides (`--set section.key=value`).
Unknown keys are refused, and combinations that would break a guarantee are refused with the reason.
"""


def configuration_markdown() -> str:
    """The whole page: one table per section with key, default and meaning."""
    sections = {item.name: type(getattr(Config(), item.name)) for item in dataclasses.fields(Config)}
    lines = [_HEAD]
    current = None
    for name, default, text in describe():
        section, _, key = name.rpartition(".")
        if section != current:
            current = section
            title, about = (f"[{section}]", sections[section].__doc__) if section else ("Top level", "")
            lines += ["", f"## {title}", *(["", str(about)] if about else [])]
            lines += ["", "| key | default | meaning |", "|---|---|---|"]
        lines.append(f"| `{key}` | `{json.dumps(default)}` | {text.replace('|', '&#124;')} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    sys.stdout.write(configuration_markdown())
