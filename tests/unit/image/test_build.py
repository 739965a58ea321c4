"""What an image's key depends on, and what goes into the guest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vmm.image.apt import Apt, Package
from vmm.image.build import agent_key, build_image
from vmm.image.command import run
from vmm.image.errors import ImageError
from vmm.image.sources import agent_sources, builder_sources


def test_the_agent_comes_without_the_trio_drivers() -> None:
    sources = agent_sources()
    assert "guest_agent/__init__.py" in sources
    assert "shim/ttrpc/status.py" in sources
    assert not [path for path, data in sources.items() if b"import trio" in data]


def test_the_builders_own_files_count() -> None:
    assert {"vmm/kernel.py", "vmm/image/build.py", "vmm/image/data/init"} <= set(builder_sources())


def test_the_agents_key_changes_with_any_source() -> None:
    key = agent_key({"a.py": b"1", "b.py": b"2"})
    assert key == agent_key({"b.py": b"2", "a.py": b"1"})
    assert key != agent_key({"a.py": b"12", "b.py": b""})
    assert key != agent_key({"a.py": b"1", "c.py": b"2"})


def test_package_file_names_are_apts() -> None:
    package = Package("zlib1g", "1:1.2.13.dfsg-1", "amd64")
    assert package.filename == "zlib1g_1%3a1.2.13.dfsg-1_amd64.deb"


def test_an_unknown_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="debian, tuned"):
        build_image("other", tmp_path)  # type: ignore[arg-type]


def test_a_release_without_the_architecture_is_named(tmp_path: Path) -> None:
    apt = Apt(tmp_path / "apt", architecture="riscv64")  # without any lists
    with pytest.raises(ImageError, match=r"no linux-image-riscv64.*--arch riscv64 --release sid"):
        build_image("debian", tmp_path, architecture="riscv64", apt=apt)


def test_a_failing_tool_is_named_with_its_last_words() -> None:
    script = "import sys; print('out'); sys.exit('the reason')"
    with pytest.raises(ImageError, match=r"exit status 1\n  out\n  the reason"):
        run([sys.executable, "-c", script], timeout=30)


def test_a_missing_tool_is_named() -> None:
    with pytest.raises(ImageError, match="no-such-tool is needed"):
        run(["no-such-tool"], timeout=30)


def test_a_tool_that_hangs_is_ended() -> None:
    with pytest.raises(ImageError, match="didn't finish"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.01)
