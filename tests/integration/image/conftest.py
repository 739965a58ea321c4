"""Images to boot: kept in the work directory, as a package is downloaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.lib.work import work_dir
from vmm.image.apt import Apt

# Debian 13's archive, from the mirror the host uses, vouched for by Debian's own keys.
_TRIXIE = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} trixie main\n"


@pytest.fixture(scope="session")
def image_cache() -> Path:
    return work_dir() / "image-tests"


@pytest.fixture(scope="session")
def host_apt(image_cache: Path) -> Apt:
    return Apt(image_cache / "apt")


@pytest.fixture(scope="session")
def trixie_apt(image_cache: Path) -> Apt:
    """Debian 13's archive, seen from any Debian."""
    from deploy.lib.apt import mirror

    apt = Apt(image_cache / "apt-trixie", _TRIXIE.format(mirror=mirror()))
    apt.update()
    return apt
