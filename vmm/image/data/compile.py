"""Compiles the guest's Python modules; run by the guest's Python: ROOT LIBRARY AGENT.

The library's sources are replaced by their bytecode, ours keep theirs. The bytecode is
never checked against a source ("unchecked hash", PEP 552), and names files as the guest will
see them.
"""

import os
import py_compile
import sys


def main() -> None:
    """Compile all that is below the directories named."""
    root, library, agent = sys.argv[1:]
    for top in (library, agent):
        for directory, names, files in os.walk(top):
            names[:] = sorted(name for name in names if name != "__pycache__")
            for name in sorted(files):
                if name.endswith(".py"):
                    _compile(root, os.path.join(directory, name), keep=top == agent)


def _compile(root: str, path: str, *, keep: bool) -> None:
    py_compile.compile(
        path,
        cfile=None if keep else path + "c",
        dfile="/" + os.path.relpath(path, root),
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not keep:
        os.unlink(path)


main()
