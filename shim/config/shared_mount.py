"""``[runtime] shared_mounts``: a mount that one container made, shown in another.

Source: Kata's runtime-rs, which has the key and an annotation of the same name, whose
value is JSON.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from shim.config.rules import Refused, Rule

_PATH = re.compile(r"(/[-\w.]+)+/?")


@dataclass(frozen=True, slots=True)
class SharedMount:
    """One such mount.

    Attributes:
        name: what to call it.
        src_ctr: name of the container that makes the mount.
        src_path: where it is mounted there.
        dst_ctr: name of the container that gets it.
        dst_path: where it is to be there.
    """

    name: str
    src_ctr: str
    src_path: str
    dst_ctr: str
    dst_path: str


def shared_mounts() -> Rule[tuple[SharedMount, ...]]:
    """Accept a list of tables with the attributes of :class:`SharedMount`."""

    def convert(value: object) -> tuple[SharedMount, ...]:
        if not isinstance(value, list):
            raise Refused
        return tuple(map(_mount, value))

    names = [field.name for field in fields(SharedMount)]
    return Rule(
        f"a list of tables, each with {', '.join(names)}, none empty; the paths are absolute, "
        'of letters, digits, "-", "_" and ".", and without ".."',
        convert,
    )


def _mount(table: object) -> SharedMount:
    names = {field.name for field in fields(SharedMount)}
    if not isinstance(table, dict) or set(table) != names:
        raise Refused
    if not all(isinstance(value, str) and value for value in table.values()):
        raise Refused
    mount = SharedMount(**table)
    for path in (mount.src_path, mount.dst_path):
        if not _PATH.fullmatch(path) or ".." in path.split("/"):
            raise Refused
    return mount
