"""Which packages this run used; printed at its end, those that could not be had as well."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deploy.lib.apt import Unpacked, codename
from deploy.lib.command import DeployError

used: dict[str, str] = {}


def obtain(what: str, release: str, fetch: Callable[[], Unpacked]) -> Unpacked:
    """Fetch unpacked packages and note their versions.

    What the mirror doesn't have skips the test and is named in the summary; what the host's
    own release must have is an error. Raises: DeployError.
    """
    try:
        packages = fetch()
    except DeployError as error:
        used[what] = f"could not be had: {error}"
        if release == codename():
            raise
        pytest.skip(f"{what} could not be had: {error}")
    used[what] = packages.describe()
    return packages
