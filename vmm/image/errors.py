"""What can go wrong with guest images."""

from __future__ import annotations

from vmm.errors import VmmError


class ImageError(VmmError):
    """An image can't be built, found or read; the text says what to do about it."""
