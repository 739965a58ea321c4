"""The guest kernel and image, built by the project's own command."""

from __future__ import annotations

from pathlib import Path

from deploy.lib.command import run
from deploy.lib.runtime import Runtime
from deploy.lib.work import REPOSITORY, locked

BUILD_TIMEOUT = 1800.0
PACKAGES = ["busybox-static", "erofs-utils", "zstd"]
"""What the builder needs on the host."""


def prepare_guest(python: Path, runtime: Runtime) -> str:
    """Build guest kernel and image for ``runtime`` unless the cache has them.

    Returns: what the build says about the image. Raises: DeployError.
    """
    with locked("guest"):
        return run(
            [python, "-m", "shim.cli.main", "image", "build"],
            timeout=BUILD_TIMEOUT,
            env=runtime.env,
            cwd=REPOSITORY,
        ).strip()
