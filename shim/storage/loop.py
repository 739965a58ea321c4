"""Loop devices: a block device on an image file.

Every device is set to auto-clear: the kernel frees it with its last user, so that
neither a crash nor a forgotten call leaves one behind.

Source: linux/loop.h; loop(4); LOOP_CONFIGURE (Linux 5.8).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
_LO_FLAGS_DIRECT_IO = 16
_NAME_SIZE = 64

# struct loop_config: fd, block_size, struct loop_info64, reserved[8]. Of loop_info64
# only lo_flags and lo_file_name are ours to set.
_CONFIG = struct.Struct(f"=II QQQQQ IIII {_NAME_SIZE}s {_NAME_SIZE}s 32s QQ 64x")
_ATTEMPTS = 64


def attach_loop(image: str, *, read_only: bool, direct_io: bool = False) -> tuple[int, str]:
    """Put a free loop device on ``image``.

    Args:
        image: path of a regular file.
        read_only: for the device.
        direct_io: bypass the host's page cache.

    Returns:
        An open descriptor of the device, which keeps it until something else (a
        mount) holds it and belongs to the caller, and the device's path.

    Raises:
        OSError: the image can't be opened or no device can be had.
    """
    access = os.O_RDONLY if read_only else os.O_RDWR
    backing = os.open(image, access | os.O_CLOEXEC)
    try:
        flags = _LO_FLAGS_AUTOCLEAR
        flags |= _LO_FLAGS_READ_ONLY if read_only else 0
        flags |= _LO_FLAGS_DIRECT_IO if direct_io else 0
        name = os.fsencode(image)[: _NAME_SIZE - 1]
        config = _CONFIG.pack(backing, 0, *(0,) * 5, *(0,) * 3, flags, name, b"", b"", 0, 0)
        for _ in range(_ATTEMPTS):
            with _Control() as control:
                number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            path = f"/dev/loop{number}"
            device = os.open(path, access | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # someone else was faster
                    raise OSError(error.errno, error.strerror, f"{path} on {image}") from error
                continue
            return device, path
        raise OSError(errno.EBUSY, "no free loop device", image)
    finally:
        os.close(backing)


class _Control:
    def __enter__(self) -> int:
        self._fd = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
