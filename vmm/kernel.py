"""Unpacks Linux kernels: the ELF image (vmlinux) inside a bzImage.

A VMM that starts the ELF image by its PVH entry skips the real-mode setup and the
decompression, which cost half a second under TCG.
Source: the kernel's Documentation/x86/boot.rst (setup header, payload_offset).
"""

from __future__ import annotations

import lzma
import struct
import subprocess
import zlib

_SETUP_MAGIC_OFFSET = 0x202
_SETUP_SECTS_OFFSET = 0x1F1
_PAYLOAD_OFFSET = 0x248
_SECTOR = 512
_UNPACK_TIMEOUT = 60.0
_GZIP_WINDOW = 31

# By the payload's first bytes. Python has no decompressor for the last two yet.
_TOOLS = {
    b"\x28\xb5\x2f\xfd": ("zstd", "-dcq"),
    b"\x02\x21\x4c\x18": ("lz4", "-dcq"),
}


class KernelError(ValueError):
    """Not a kernel image we can unpack; the text says why."""


def extract_vmlinux(image: bytes) -> bytes:
    """Return the ELF image inside a bzImage; an ELF image is returned as it is.

    Raises:
        KernelError: not a kernel image, a damaged one, or compressed in a way that can't be read.
    """
    if image[:4] == b"\x7fELF":
        return image
    if image[_SETUP_MAGIC_OFFSET : _SETUP_MAGIC_OFFSET + 4] != b"HdrS":
        raise KernelError("not a bzImage: no setup header")
    try:
        offset, length = struct.unpack_from("<II", image, _PAYLOAD_OFFSET)
    except struct.error as error:
        raise KernelError("not a bzImage: the setup header is cut off") from error
    # 0 means 4, for compatibility with kernels of the floppy age.
    setup_sectors = image[_SETUP_SECTS_OFFSET] or 4
    start = (setup_sectors + 1) * _SECTOR + offset
    payload = image[start : start + length]
    if len(payload) < length or not length:
        raise KernelError(f"bzImage is cut off: its payload of {length} bytes isn't all there")
    vmlinux = _decompress(payload)
    if vmlinux[:4] != b"\x7fELF":
        raise KernelError("bzImage holds no ELF image")
    return vmlinux


def _decompress(payload: bytes) -> bytes:
    # The kernel's build appends the unpacked size: decompressors must stand trailing bytes.
    try:
        if payload.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(_GZIP_WINDOW).decompress(payload)
        if payload.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
            return lzma.LZMADecompressor().decompress(payload)
        for magic, argv in _TOOLS.items():
            if payload.startswith(magic):
                return _by_tool(argv, payload[:-4])
    except (zlib.error, lzma.LZMAError) as error:
        raise KernelError(f"bzImage's payload is damaged: {error}") from error
    raise KernelError(f"bzImage is compressed in an unknown way ({payload[:6].hex()})")


def _by_tool(argv: tuple[str, ...], payload: bytes) -> bytes:
    try:
        done = subprocess.run(
            argv, input=payload, capture_output=True, timeout=_UNPACK_TIMEOUT, check=False
        )
    except FileNotFoundError:
        raise KernelError(f"this kernel is packed with {argv[0]}, which isn't installed") from None
    except subprocess.TimeoutExpired:
        raise KernelError(f"{argv[0]} didn't finish within {_UNPACK_TIMEOUT:.0f} s") from None
    if done.returncode:
        raise KernelError(f"{argv[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
