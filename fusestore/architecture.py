"""This machine's architecture, in the words that images have for it: Go's GOARCH, and its variant."""

from __future__ import annotations

import os

# uname -m -> GOARCH and its variant
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}


def architecture() -> tuple[str, str]:
    """The architecture and its variant, "" where there is none."""
    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, (machine, ""))
