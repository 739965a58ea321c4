"""Which guest kernel and image VMs get: those configured, else those built here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from shim.cli.findings import Finding, Level
from vmm.arch import architecture
from vmm.image.errors import ImageError

if TYPE_CHECKING:
    from shim.config.model import Config
    from vmm.image.store import GuestImage, KernelKind


def guest(config: Config) -> Iterable[Finding]:
    """The guest's kernel and image are there, and hold this version's agent."""
    from vmm.image.build import agent_key
    from vmm.image.store import build_command

    vm = config.hypervisor
    for key, path in (("kernel", vm.kernel), ("initrd", vm.initrd), ("image", vm.image)):
        if path is None:
            continue
        if path.is_file() or (key == "image" and path.is_block_device()):
            yield Finding(f"guest {key}", Level.OK, str(path))
        else:
            advice = f"correct or remove {key} in [{vm.section}]"
            yield Finding(f"guest {key}", Level.FAIL, f"no file at {path}", advice)
    if vm.kernel is not None and vm.image is not None:
        return
    build = f"run `{build_command(kernel_kind(config), config.katapy.guest_arch)}`"
    try:
        image = built_image(config)
    except ImageError as error:
        yield Finding("guest image", Level.FAIL, str(error), build)
        return
    text = f"{image.kind} kernel {image.kernel_release}, {image.rootfs}"
    if image.agent_key == agent_key():
        yield Finding("guest image", Level.OK, text)
    else:
        text += " holds the agent of another version"
        yield Finding("guest image", Level.WARN, text, build)


def built_image(config: Config) -> GuestImage:
    """Return the built image that the configuration asks for.

    Raises ImageError when there is none; the text says how to build it.
    """
    from vmm.image.store import find_image

    return find_image(config.katapy.cache_dir, kernel_kind(config), config.katapy.guest_arch)


def kernel_kind(config: Config) -> KernelKind | None:
    """Return the kernel that the configuration names, None for the best that is built."""
    name = config.katapy.guest_kernel
    return None if name == "auto" else cast("KernelKind", name)


def may_have_9p(config: Config) -> bool:
    """Whether the guest's kernel has 9p, as far as it can be told: Debian's cloud one has not."""
    if config.hypervisor.kernel is not None or architecture(config.katapy.guest_arch).has_9p:
        return True
    try:
        return built_image(config).kind == "tuned"
    except ImageError:
        return config.katapy.guest_kernel == "tuned"
