"""The text of the installed ``containerd-shim-katapy-v2``.

A generated console script would import ``re`` and read the virtual environment's
``.pth`` files, which costs more than all of ``start``; this one isolates the
interpreter and names its directories itself.

    python3 -m shim.launcher PYTHON SOURCE_DIR BYTECODE_DIR [SITE_PACKAGES...] > TARGET
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Isolated, no site, no environment, no warnings: nothing of the caller's Python
# settings reaches the shim, and nothing may be printed to standard error. Documentation
# strings stay out of memory (1.4 MiB a shim); such bytecode of the system's own library
# must not be written beside it, so all of it has a directory of its own.
_OPTIONS = "-ISEOOWignore"
_SHEBANG_MAX = 127  # bytes; what kernels before 5.1 read

_TEMPLATE = """\
#!{python} {options}
import sys
sys.pycache_prefix = {bytecode!r}
sys.path.insert(0, {source!r})
from shim.stub import main
sys.exit(main(sys.argv[1:], {site!r}))
"""


def render_launcher(
    python: str, source_dir: str, bytecode_dir: str, site_packages: Sequence[str]
) -> str:
    """The launcher script.

    Args:
        python: absolute path of the interpreter; the system's own starts fastest.
        source_dir: directory that holds the packages shim, vmm and protos.
        bytecode_dir: absolute path where compiled modules are kept; the shim adds what is
            missing or stale.
        site_packages: directories that hold trio and protobuf.

    Raises:
        ValueError: the kernel could not execute a script with this interpreter path.
    """
    shebang = f"#!{python} {_OPTIONS}"
    if not python.startswith("/") or any(c.isspace() for c in python):
        raise ValueError(f"interpreter {python!r} must be an absolute path without spaces")
    if len(shebang.encode()) > _SHEBANG_MAX:
        raise ValueError(f"interpreter path {python!r} is too long for a script's first line")
    return _TEMPLATE.format(
        python=python,
        options=_OPTIONS,
        bytecode=bytecode_dir,
        source=source_dir,
        site=list(site_packages),
    )


if __name__ == "__main__":
    sys.stdout.write(render_launcher(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
