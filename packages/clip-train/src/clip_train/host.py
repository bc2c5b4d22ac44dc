"""What a command asks of its process before jax starts: keep what was compiled, and memory in large pages."""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import sys
from pathlib import Path

_HUGE_PAGES = "glibc.malloc.hugetlb=1"
_CACHE_BYTES = 4 * 2**30
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/kfd")


def accelerators() -> list[str]:
    """The devices of this machine that look like accelerators, whether jax sees them or not."""
    return [path for pattern in _ACCELERATORS for path in glob.glob(pattern)]


def prepare_host() -> None:
    """Do both; the process may be started anew, as itself, to take effect."""
    keep_compiled()
    use_huge_pages()


def keep_compiled() -> None:
    """Have jax keep compiled programs on disk, so that a second start need not compile them again.

    `JAX_COMPILATION_CACHE_DIR` says where, by default in the user's cache; none is kept with
    `JAX_ENABLE_COMPILATION_CACHE=false`.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # Programs for a processor suit that model of it alone, and a home may be shared by many machines.
    machine = hashlib.sha256(_processor().encode()).hexdigest()[:8]
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "clip-jax" / f"xla-{machine}"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_CACHE_BYTES))


def use_huge_pages() -> None:
    """On a CPU under Linux, start this process anew with malloc in huge pages, where the system leaves that to us.

    XLA takes a step's memory afresh each time: in pages of 4 KiB, a tenth to a third of a step goes into their faults.
    `GLIBC_TUNABLES`, set to anything, keeps the process as it is.
    """
    asked = os.environ.get("JAX_PLATFORMS", "cpu")
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc" or not sys.executable:
        return
    if asked != "cpu" or (accelerators() and "JAX_PLATFORMS" not in os.environ):
        return
    try:
        if "[madvise]" not in setting.read_text():
            return
    except OSError:
        return
    os.environ["GLIBC_TUNABLES"] = _HUGE_PAGES
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
