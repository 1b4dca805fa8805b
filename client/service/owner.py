"""What the owner allows, kept in the profile: HOME/profiles/NAME/limits.json."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from client.limits import Limits
from client.profile import Profile
from shared.artifacts import write_atomic
from shared.errors import ConfigError

NAME = "limits.json"
#: What a device allows whose owner said nothing.
USUAL = Limits(mode="event", trust="aggregate", epsilon=8.0, delta=1e-5)


def limits_of(profile: Profile, **changes: Any) -> Limits:
    """The owner's limits with some of them changed, None leaves one as it is; changes are kept.

    changes: as `Limits.of_owner` takes them. ConfigError for a damaged file, an unknown value, or one that means
    nothing. A larger budget is the owner's to give: what was spent stays spent.
    """
    path = profile.folder / NAME
    try:
        stored = asdict(USUAL) | (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})
        given = {name: value for name, value in changes.items() if value is not None}
        if given.get("mode", "both") != "both":
            stored["user_epsilon"] = 0.0
        found = Limits.of_owner(**(stored | given))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: found no usable limits ({error}); mend or remove the file") from None
    if given:
        write_atomic(path, json.dumps(asdict(found), indent=2).encode(), private=True)
    return found
