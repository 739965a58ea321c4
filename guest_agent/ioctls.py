"""Request numbers of ``ioctl(2)`` that not all architectures agree on.

Python's own constants are right everywhere, but their modules cost an import at the start.
Source: asm-generic/ioctl.h, and the kernel's powerpc headers for the exceptions.
"""

from __future__ import annotations

import os

_POWER = os.uname().machine.startswith("ppc")
_DIRECTION_BIT = 29 if _POWER else 30
_WRITE, _READ = (4, 2) if _POWER else (1, 2)


def _number(direction: int, group: int, command: int, size: int) -> int:
    return direction << _DIRECTION_BIT | size << 16 | group << 8 | command


FIONREAD = _number(_READ, ord("f"), 127, 4) if _POWER else 0x541B
TIOCSWINSZ = _number(_WRITE, ord("t"), 103, 8) if _POWER else 0x5414
RNDADDENTROPY = _number(_WRITE, ord("R"), 3, 8)
RNDRESEEDCRNG = _number(1 if _POWER else 0, ord("R"), 7, 0)
EXT4_IOC_RESIZE_FS = _number(_WRITE, ord("f"), 16, 8)
XFS_IOC_FSGROWFSDATA = _number(_WRITE, ord("X"), 110, 16)
XFS_IOC_FSGEOMETRY_V1 = _number(_READ, ord("X"), 100, 112)
