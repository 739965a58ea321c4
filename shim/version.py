"""The version every part of katapy reports; pyproject.toml carries the same."""

VERSION = "0.1.0"
RUNTIME_NAME = "io.containerd.katapy.v2"
