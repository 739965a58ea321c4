"""Mount cases; each runs as root in a process and mount namespace of its own.

``python -m tests.integration.storage.cases NAME DIRECTORY`` runs one; the tests do so.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import trio

from shim.errors import InvalidArgument, KatapyError, NotFound, Unimplemented
from shim.storage.disk import make_filesystem, make_scratch
from shim.storage.mounts import bind, mount, unmount
from shim.storage.options import Mount
from shim.storage.pack import Packing
from shim.storage.rootfs import PackedRootfs, SharedRootfs
from shim.storage.share import GUEST_SHARE, Share
from tests.integration.storage.tools import (
    Ledger,
    directory,
    image,
    is_mount,
    is_read_only,
    loops_on,
    mounted_below,
    options_of,
    run,
    start_server,
    wait_until_free,
)


async def overlay_with_many_layers(base: Path) -> None:
    """130 layers need more than a page of names."""
    layers = [
        directory(base / "io.containerd.snapshotter.v1.overlayfs" / str(n) / "fs", **{f"f{n}": "x"})
        for n in range(130)
    ]
    upper, work = directory(base / "u"), directory(base / "w")
    target = directory(base / "target")
    options = (
        f"lowerdir={':'.join(map(str, layers))}",
        f"upperdir={upper}",
        f"workdir={work}",
    )
    assert len(options[0]) > os.sysconf("SC_PAGE_SIZE")
    before = os.getcwd()
    ledger = Ledger()
    note = await mount(Mount("overlay", "overlay", "", options), str(target), ledger)
    assert os.getcwd() == before
    assert len(os.listdir(target)) == 130
    (target / "new").write_text("written")
    assert (upper / "new").read_text() == "written"
    await unmount(str(target))
    ledger.remove(note)
    assert mounted_below(base) == []


async def loop_image(base: Path) -> None:
    """A loop device lasts as long as its mount."""
    file, target = image(base / "disk"), directory(base / "target")
    ledger = Ledger()
    await mount(Mount("ext4", str(file), "", ("loop", "rw", "noatime")), str(target), ledger)
    assert (target / "hello").read_text() == "from the image"
    (target / "more").write_text("x")
    assert "noatime" in options_of(target)
    assert len(loops_on(file)) == 1
    await unmount(str(target))
    wait_until_free(file)


async def loop_image_read_only(base: Path) -> None:
    """A read-only image needs no write access, and its loop device is read-only."""
    for fstype in ("ext4", "erofs"):
        file = image(base / f"disk-{fstype}", fstype=fstype)
        file.chmod(0o444)
        target = directory(base / f"target-{fstype}")
        ledger = Ledger()
        await mount(Mount(fstype, str(file), "", ("loop", "ro")), str(target), ledger)
        assert (target / "hello").read_text() == "from the image"
        with pytest.raises(OSError, match="Read-only"):
            (target / "x").touch()
        device = loops_on(file)[0].partition(":")[0].removeprefix("/dev/")
        assert is_read_only(device)
        await unmount(str(target))


async def bind_read_only(base: Path) -> None:
    """Read-only holds for the mounts below as well; the source stays writable."""
    source, target = directory(base / "source", a="1"), directory(base / "target")
    directory(source / "below")
    run("mount", "-t", "tmpfs", "tmpfs", source / "below")
    await bind(str(source), str(target), Ledger(), read_only=True)
    for path in (target, target / "below"):
        with pytest.raises(OSError, match="Read-only"):
            (path / "x").touch()
    (source / "x").touch()
    (source / "below" / "x").touch()
    assert (target / "below" / "x").exists()


async def bind_options_of_a_snapshotter(base: Path) -> None:
    """``rbind`` with ``ro`` and flags, as the native snapshotter gives it."""
    source, target = directory(base / "source", a="1"), directory(base / "target")
    entry = Mount("bind", str(source), "", ("rbind", "ro", "nosuid", "rprivate"))
    await mount(entry, str(target), Ledger())
    line = options_of(target)
    assert "ro,nosuid" in line
    with pytest.raises(OSError, match="Read-only"):
        (target / "x").touch()
    (source / "x").touch()


async def unmounting_a_bind_leaves_the_source(base: Path) -> None:
    """Even where the source's tree is shared and has mounts below it."""
    source, target = directory(base / "source"), directory(base / "target")
    run("mount", "--bind", source, source)
    run("mount", "--make-rshared", source)
    directory(source / "below")
    run("mount", "-t", "tmpfs", "tmpfs", source / "below")
    share = Share(str(base / "share"), Ledger())
    await share.prepare()
    await share.add_volume("c", str(source))
    assert is_mount(base / "share" / "1-c-source" / "below")
    await share.aclose()
    assert is_mount(source / "below")
    assert mounted_below(base / "share") == []
    assert not mounted_below(target)


async def idmapped_overlay(base: Path) -> None:
    """Lower layers appear with the mapped owners; nothing is changed on disk."""
    lower, upper, work = (directory(base / name) for name in ("l", "u", "w"))
    (lower / "file").touch()
    target = directory(base / "target")
    options = (
        "uidmap=0:5000:65536",
        "gidmap=0:6000:65536",
        f"lowerdir={lower}",
        f"upperdir={upper}",
        f"workdir={work}",
    )
    await mount(Mount("overlay", "overlay", "", options), str(target), Ledger())
    found = os.stat(target / "file")
    assert (found.st_uid, found.st_gid) == (5000, 6000)
    assert os.stat(lower / "file").st_uid == 0
    assert [path for path in mounted_below(Path("/tmp")) if "katapy-idmap" in path] == []


async def idmapped_bind(base: Path) -> None:
    """A bind mount may have maps too, and needs both."""
    source, target = directory(base / "source", a="1"), directory(base / "target")
    options = ("rbind", "uidmap=0:5000:10", "gidmap=0:5000:10")
    await mount(Mount("bind", str(source), "", options), str(target), Ledger())
    assert os.stat(target / "a").st_uid == 5000
    with pytest.raises(InvalidArgument, match="need each other"):
        await mount(Mount("bind", str(source), "", options[:2]), str(base / "u"), Ledger())


async def idmap_refused(base: Path) -> None:
    """A file system without idmapped mounts is a clear error and leaves nothing."""
    target = directory(base / "target")
    entry = Mount("bind", "/proc", "", ("bind", "uidmap=0:1:1", "gidmap=0:1:1"))
    ledger = Ledger()
    with pytest.raises(KatapyError, match=r"idmapped mount of /proc: .*snapshotter"):
        await mount(entry, str(target), ledger)
    assert ledger.entries == {}
    assert mounted_below(base) == []


async def failures_are_clear_and_leave_nothing(base: Path) -> None:
    """What can't be mounted is said with type, source and options."""
    target = directory(base / "target")
    garbage = base / "garbage"
    garbage.write_bytes(os.urandom(65536))
    ledger = Ledger()
    for entry, complaint in (
        (Mount("ext4", str(base / "missing"), "", ("loop",)), "missing"),
        (Mount("ext4", str(garbage), "", ("loop",)), "garbage"),
        (Mount("nosuchfs", "x"), "nosuchfs x with no options"),
        (Mount("bind", str(base / "missing"), "", ("rbind",)), "missing"),
        (Mount("overlay", "overlay", "", ("lowerdir=/none",)), "lowerdir=/none"),
        (Mount("fuse3.nothing", "x"), "mount.fuse3"),
    ):
        with pytest.raises(KatapyError, match=complaint):
            await mount(entry, str(target), ledger)
    assert ledger.entries == {}
    assert mounted_below(base) == []
    assert loops_on(garbage) == []


async def unmounting_takes_stacked_mounts_and_nothing(base: Path) -> None:
    """All mounts at a place go, and it is no error if there is none."""
    target = directory(base / "target")
    for _ in range(3):
        run("mount", "-t", "tmpfs", "tmpfs", target)
    await unmount(str(target))
    assert mounted_below(base) == []
    await unmount(str(target))
    await unmount(str(base / "missing"))


async def share_reaches_a_server_in_its_own_namespace(base: Path) -> None:
    """What a file server that has unshared sees of mounts made later."""
    ledger = Ledger()
    share = Share(str(base / "share"), ledger)
    await share.prepare()
    with start_server() as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdout.readline()
        seen = Path(f"/proc/{server.pid}/root{base}/share")
        layer = directory(base / "layer", a="from the layer")
        directory(base / "empty")
        overlay = Mount("overlay", "overlay", "", (f"lowerdir={layer}:{base / 'empty'}",))
        path = await share.add_rootfs("c1", SharedRootfs((overlay,), ""))
        assert path == f"{GUEST_SHARE}/1-c1/rootfs"
        assert (seen / "1-c1" / "rootfs" / "a").read_text() == "from the layer"
        config = base / "odd näme.conf"
        config.write_text("configured")
        path = await share.add_volume("c1", str(config), read_only=True)
        assert path == f"{GUEST_SHARE}/2-c1-odd_n_me.conf"
        assert (seen / path.rpartition("/")[2]).read_text() == "configured"
        with pytest.raises(OSError, match="Read-only"):
            (base / "share" / "2-c1-odd_n_me.conf").write_text("x")
        await share.remove("c1")
        await share.remove("c1")
        # The guest may know what was there for a while: the same id gets another place.
        path = await share.add_rootfs("c1", SharedRootfs((overlay,), ""))
        assert path == f"{GUEST_SHARE}/3-c1/rootfs"
        await share.remove("c1")
        assert list((base / "share").iterdir()) == []
        assert not [m for m in _mounts_of(server.pid) if f"{base}/share/" in m]
        server.stdin.close()
    await share.aclose()
    assert ledger.entries == {}
    assert not (base / "share").exists()


async def late_mounts_of_a_volume_are_seen(base: Path) -> None:
    """With a shared source, as kubelet's volumes are, later mounts come in."""
    source = directory(base / "source")
    run("mount", "-t", "tmpfs", "tmpfs", source)
    run("mount", "--make-rshared", source)
    share = Share(str(base / "share"), Ledger())
    await share.prepare()
    await share.add_volume("c", str(source))
    directory(source / "late")
    run("mount", "-t", "tmpfs", "tmpfs", source / "late")
    (source / "late" / "file").touch()
    assert (base / "share" / "1-c-source" / "late" / "file").exists()
    await share.aclose()
    assert is_mount(source / "late")


async def sandbox_mounts_are_read_only_unless_said(base: Path) -> None:
    """What the configuration shows every guest is below one folder, by its own name."""
    tools, data, file = directory(base / "tools", a="1"), directory(base / "data"), base / "f"
    file.write_text("x")
    ledger = Ledger()
    share = Share(str(base / "share"), ledger)
    await share.prepare()
    for entry in (f"{tools}", f"{data}:rw", f"{file}:ro"):
        await share.add_sandbox_mount(entry)
    below = base / "share" / "sandbox-mounts"
    assert (below / "tools" / "a").read_text() == "1"
    (below / "data" / "new").touch()
    for path in (below / "tools" / "a", below / "f"):
        with pytest.raises(OSError, match="Read-only"):
            path.write_text("y")
    with pytest.raises(NotFound, match="sandbox_bind_mounts"):
        await share.add_sandbox_mount(f"{base}/none")
    namesake = directory(base / "other" / "tools")
    with pytest.raises(InvalidArgument, match="another path is named"):
        await share.add_sandbox_mount(str(namesake))
    await share.aclose()
    assert ledger.entries == {}


async def the_guest_writes_only_into_what_is_mounted(base: Path) -> None:
    """Neither the host's memory nor the names of what comes next are a guest's to take."""
    ledger = Ledger()
    share = Share(str(base / "share"), ledger)
    await share.prepare()
    seen, root = base / "share", directory(base / "root")
    await share.add_rootfs("c1", SharedRootfs((), str(root)))
    for path in (seen / "new", seen / "1-c1" / "new"):
        with pytest.raises(OSError, match="Read-only"):
            path.touch()
    for link in (seen / "c2", seen / "2-c1-root"):
        with pytest.raises(OSError, match="Read-only"):
            link.symlink_to("/etc")
    with pytest.raises(OSError, match="Read-only"):
        (seen / "1-c1").rename(seen / "away")
    (seen / "1-c1" / "rootfs" / "file").write_text("the container's")
    assert (root / "file").read_text() == "the container's"
    assert await share.add_volume("c1", str(root)) == f"{GUEST_SHARE}/2-c1-root"
    (seen / "2-c1-root" / "more").touch()
    await share.aclose()
    assert ledger.entries == {}
    assert not seen.exists()
    assert not (base / "mounts").exists()


async def a_volume_has_no_usable_device_nodes(base: Path) -> None:
    """A node that a hostile guest makes opens nothing on the host."""
    source = directory(base / "source")
    share = Share(str(base / "share"), Ledger())
    await share.prepare()
    await share.add_volume("c", str(source))
    node = base / "share" / "1-c-source" / "null"
    os.mknod(node, 0o020666, os.makedev(1, 3))
    with pytest.raises(PermissionError):
        node.read_bytes()
    assert (source / "null").read_bytes() == b""
    await share.aclose()


async def a_packed_rootfs_leaves_only_its_image(base: Path) -> None:
    """What an overlay shows is in the image; the mounts made for it are gone."""
    lower, upper, work = (directory(base / name) for name in ("l", "u", "w"))
    (lower / "below").write_text("l")
    (upper / "above").write_text("u")
    options = (f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}")
    ledger = Ledger()
    packing = Packing(str(base / "rootfs" / "one"), ledger, "c")
    image = await packing.pack(PackedRootfs((Mount("overlay", "overlay", "", options),), ""))
    assert mounted_below(base) == []
    assert [kind for kind, _ in ledger.entries.values()] == ["file"]
    target = directory(base / "target")
    run("mount", "-t", "erofs", "-o", "loop", image, target)
    assert sorted(os.listdir(target)) == ["above", "below"]
    run("umount", target)
    await packing.aclose()
    await packing.aclose()
    assert ledger.entries == {}
    assert list((base / "rootfs").iterdir()) == []
    with pytest.raises(KatapyError, match=r"/none"):
        await packing.pack(PackedRootfs((Mount("bind", "/none", "", ("rbind",)),), ""))
    await packing.aclose()
    assert ledger.entries == {}
    assert list((base / "rootfs").iterdir()) == []


async def a_scratch_disk_is_empty_and_its_owners(base: Path) -> None:
    """And it is kept, not made again, when it is there."""
    folder = directory(base / "volume")
    image = make_scratch(str(folder), uid=5, gid=7, mode=0o2770)
    assert os.listdir(folder) == ["disk.img"]
    assert os.stat(image).st_blocks * 512 < os.stat(image).st_size // 4
    target = directory(base / "target")
    run("mount", "-o", "loop", image, target)
    info = target.stat()
    assert (info.st_mode & 0o7777, info.st_uid, info.st_gid) == (0o2770, 5, 7)
    assert os.listdir(target) == []
    (target / "data").write_text("kept")
    run("umount", target)
    assert make_scratch(str(folder), uid=0, gid=0, mode=0o700) == image
    run("mount", "-o", "loop", image, target)
    assert (target / "data").read_text() == "kept"
    run("umount", target)


async def a_file_system_is_made_where_there_is_nothing(base: Path) -> None:
    """And nothing that is there is overwritten."""
    image = base / "image"
    image.touch()
    os.truncate(image, 16 << 20)
    make_filesystem(str(image))
    target = directory(base / "target")
    run("mount", "-o", "loop", image, target)
    (target / "data").write_text("kept")
    run("umount", target)
    make_filesystem(str(image))
    run("mount", "-o", "loop", image, target)
    assert (target / "data").read_text() == "kept"
    run("umount", target)
    run("/sbin/mkswap", "--quiet", image)
    before = image.read_bytes()
    make_filesystem(str(image))
    assert image.read_bytes() == before
    with pytest.raises(KatapyError, match="No such file"):
        make_filesystem(str(base / "none"))


async def a_failing_rootfs_is_rolled_back(base: Path) -> None:
    """The mounts made before the failing one go again."""
    ledger = Ledger()
    share = Share(str(base / "share"), ledger)
    await share.prepare()
    before = dict(ledger.entries)
    good = directory(base / "good")
    directory(good / "sub")
    mounts = (Mount("bind", str(good), "", ("rbind",)), Mount("bind", "/none", "sub", ("rbind",)))
    with pytest.raises(InvalidArgument, match="/none"):
        await share.add_rootfs("c", SharedRootfs(mounts, ""))
    assert ledger.entries == before
    assert list((base / "share").iterdir()) == []
    # And a link in an image leads a mount nowhere else.
    (good / "link").symlink_to("/etc")
    mounts = (Mount("bind", str(good), "", ("rbind",)), Mount("tmpfs", "tmpfs", "link"))
    with pytest.raises(InvalidArgument, match="leaves the root"):
        await share.add_rootfs("c", SharedRootfs(mounts, ""))
    assert ledger.entries == before
    await share.aclose()


async def later_rootfs_mounts_lie_inside_earlier_ones(base: Path) -> None:
    """Each target is looked up in what is mounted by then, and the guest sees all of it."""
    lower, middle = directory(base / "lower"), directory(base / "middle")
    (directory(lower / "a") / "hidden").touch()
    (lower / "link").symlink_to("a")
    directory(middle / "b" / "c")
    for propagation in ((), ("rprivate",), ("rslave",)):
        mounts = (
            Mount("bind", str(lower), "", ("rbind", *propagation)),
            Mount("bind", str(middle), "link", ("rbind", *propagation)),
            Mount("tmpfs", "tmpfs", "/a/b/c", ("mode=700",)),
        )
        ledger = Ledger()
        share = Share(str(base / "share"), ledger)
        await share.prepare()
        await share.add_rootfs("c", SharedRootfs(mounts, ""))
        made, seen = (base / view / "1-c" / "rootfs" for view in ("mounts", "share"))
        for root in (made, seen):
            assert os.listdir(root / "a") == ["b"], (root, propagation)
            assert is_mount(root / "a" / "b" / "c"), (root, propagation)
        (made / "a/b/c/file").touch()
        assert (seen / "a/b/c/file").exists()
        await share.remove("c")
        assert mounted_below(base / "share" / "1-c") == []
        await share.aclose()
        assert ledger.entries == {}


async def what_cannot_be_shared_is_said(base: Path) -> None:
    """Missing sources and device nodes are errors of different kinds."""
    share = Share(str(base / "share"), Ledger())
    await share.prepare()
    with pytest.raises(NotFound, match="missing"):
        await share.add_volume("c", str(base / "missing"))
    with pytest.raises(Unimplemented, match="/dev/null"):
        await share.add_volume("c", "/dev/null")
    await share.aclose()


def _mounts_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/mountinfo").read_text().splitlines()


CASES = [
    overlay_with_many_layers,
    loop_image,
    loop_image_read_only,
    bind_read_only,
    bind_options_of_a_snapshotter,
    unmounting_a_bind_leaves_the_source,
    idmapped_overlay,
    idmapped_bind,
    idmap_refused,
    failures_are_clear_and_leave_nothing,
    unmounting_takes_stacked_mounts_and_nothing,
    share_reaches_a_server_in_its_own_namespace,
    late_mounts_of_a_volume_are_seen,
    a_failing_rootfs_is_rolled_back,
    later_rootfs_mounts_lie_inside_earlier_ones,
    sandbox_mounts_are_read_only_unless_said,
    the_guest_writes_only_into_what_is_mounted,
    a_volume_has_no_usable_device_nodes,
    a_packed_rootfs_leaves_only_its_image,
    a_scratch_disk_is_empty_and_its_owners,
    a_file_system_is_made_where_there_is_nothing,
    what_cannot_be_shared_is_said,
]


if __name__ == "__main__":
    trio.run({case.__name__: case for case in CASES}[sys.argv[1]], Path(sys.argv[2]))
