"""What can go wrong with guest images."""

from __future__ import annotations


class ImageError(Exception):
    """An image can't be built, found or read; the text says what to do about it."""
