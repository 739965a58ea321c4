"""Hooks that the guest's image brings: run for every container, in the guest.

Source: Kata's docs/design/hooks-handling.md and its agent's ``guest_hook_path``.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KINDS = ("prestart", "poststart", "poststop")
_HOOK_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find(directory: str) -> dict[str, list[dict[str, Any]]]:
    """The hooks below a directory, by kind: its executable files, in the order of their names.

    Args:
        directory: has a folder for each kind of hook, or not.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in KINDS:
        folder = f"{directory}/{kind}"
        try:
            names = sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        hooks = [
            {"path": f"{folder}/{name}", "args": [name, kind], "env": [_HOOK_PATH]}
            for name in names
            if os.path.isfile(f"{folder}/{name}") and os.access(f"{folder}/{name}", os.X_OK)
        ]
        if hooks:
            found[kind] = hooks
    return found


def add(spec: dict[str, Any], hooks: dict[str, list[dict[str, Any]]]) -> None:
    """Have a container run the guest's hooks after its own."""
    given = spec.get("hooks") or {}
    spec["hooks"] = {
        **given,
        **{kind: [*(given.get(kind) or ()), *own] for kind, own in hooks.items()},
    }
