"""``katapy image``: build and list guest images."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

from shim.cli.guest import kernel_kind
from shim.cli.options import add_config_argument, configuration

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.image.store import GuestImage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="build the image, unless it is there already")
    build.add_argument(
        "--kernel",
        choices=("debian", "tuned"),
        help="which kernel (default: the configured one, else debian)",
    )
    build.add_argument("--arch", default="", help="architecture of the guest (default: the host's)")
    build.add_argument(
        "--release",
        default="",
        help="Debian release of its packages, such as sid (default: the host's)",
    )
    build.add_argument("--quiet", action="store_true", help="no progress, only the result")
    show = actions.add_parser("list", help="list the images that are ready, the newest first")
    for action in (build, show):
        add_config_argument(action)
        action.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Build or list; 0, or an ImageError."""
    config = configuration(arguments.config)
    if arguments.action == "list":
        from vmm.image.store import list_images

        images = list_images(config.katapy.cache_dir)
        if arguments.json:
            print(json.dumps([describe(image) for image in images], indent=2))
        else:
            print(as_table(images))
        return 0
    from vmm.image.build import build_image

    kind = arguments.kernel or kernel_kind(config) or "debian"
    progress = _quiet if arguments.quiet else _progress()
    image = build_image(
        kind,
        config.katapy.cache_dir,
        progress,
        architecture=arguments.arch,
        release=arguments.release,
    )
    if arguments.json:
        print(json.dumps(describe(image), indent=2))
    else:
        print(image.rootfs.parent)
    return 0


def describe(image: GuestImage) -> dict[str, object]:
    """Return an image as a JSON object."""
    return {
        "kind": image.kind,
        "architecture": image.architecture,
        "key": image.key,
        "kernel": str(image.kernel),
        "kernel_release": image.kernel_release,
        "kernel_args": image.kernel_args,
        "initrd": str(image.initrd or ""),
        "rootfs": str(image.rootfs),
        "agent_key": image.agent_key,
        "versions": dict(image.versions),
        "built": _when(image),
    }


def as_table(images: list[GuestImage]) -> str:
    """Return images as aligned lines under a heading."""
    rows = [("KIND", "ARCH", "KEY", "KERNEL", "SIZE", "BUILT", "DIRECTORY")]
    rows += [
        (
            image.kind,
            image.architecture,
            image.key[:12],
            image.kernel_release,
            f"{_size(image) / (1 << 20):.0f} MiB",
            _when(image),
            str(image.rootfs.parent),
        )
        for image in images
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _size(image: GuestImage) -> int:
    parts = (image.kernel, image.initrd, image.rootfs)
    return sum(part.stat().st_size for part in parts if part is not None)


def _when(image: GuestImage) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(image.built))


def _progress() -> Callable[[str], None]:
    started = time.monotonic()

    def progress(line: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {line}", file=sys.stderr, flush=True)

    return progress


def _quiet(line: str) -> None:
    pass
