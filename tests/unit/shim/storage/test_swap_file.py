"""Files that guests use as swap space."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from shim.storage.swap_file import make_swap_file

PAGES = (4096, 65536)


@pytest.mark.parametrize("page_size", PAGES)
def test_others_know_it_for_one(tmp_path: Path, page_size: int) -> None:
    path = tmp_path / "deep/swap"
    make_swap_file(str(path), 33 * 65536 + 1, page_size)
    info = path.stat()
    assert (info.st_size, info.st_mode & 0o777) == (33 * 65536, 0o600)
    assert info.st_blocks * 512 < info.st_size
    said = subprocess.run(
        ["/sbin/blkid", "-p", "-o", "value", "-s", "TYPE", path], capture_output=True, check=True
    )
    assert said.stdout == b"swap\n"


def test_what_the_host_has_no_room_for_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "swap"
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        make_swap_file(str(path), 1 << 59, 4096)
    assert not path.exists()
