"""Settings of glibc's allocator that keep the peak memory of training near what tensors need.

torch asks for aligned blocks. glibc cuts what alignment left over from both ends of a block and gives the pieces to small objects, which
outlive the tensor; the block that is freed between them is then too short for the next tensor of the same size. With these settings most
pieces are joined again, and small objects find room elsewhere (`reserve_small_blocks`). `docs/real-models.md` has figures (glibc 2.36).
The settings can only be made before a process starts, so the process replaces itself once, before it has read or written anything. Left
out: musl and other systems, whose allocators are others.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys

_VARIABLE = "GLIBC_TUNABLES"
_SETTINGS = {
    "tcache_count": 0,  # leftovers are joined again with the block beside them
    "mxfast": 0,
    "mmap_threshold": 32 << 20,  # what the default rises to by itself; setting the next one would stop it from rising
    "trim_threshold": 1 << 40,  # memory at the end of the heap is kept for the next step
}
_SMALL = 24, 40, 56  # bytes of objects that leftovers of alignment have room for
_RESERVED = 1 << 14  # of each, more than a step has: 4 MB in all
_HUGE_PAGE = 2 << 20


def restart() -> None:
    """Replace this process by itself with these settings; do nothing where they are set, or where the user has set others.

    Nor where the program came from standard input, of which nothing would be left for a second start.
    """
    if _VARIABLE in os.environ or not _is_glibc() or not sys.executable or _is_typed():
        return
    os.environ[_VARIABLE] = ":".join(f"glibc.malloc.{name}={value}" for name, value in _SETTINGS.items())
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@functools.cache
def reserve_small_blocks() -> None:
    """Let the small objects that outlive a tensor lie elsewhere than behind it; once per process, after torch is imported.

    An autograd graph keeps the version counter of every tensor that an operation saved, also where activation checkpointing has freed
    the tensor itself. Blocks of a small object's size that are free already are taken before leftovers, so thousands are made here,
    each with one behind it that stays, or they would join.
    """
    if not _is_glibc():
        return
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    pairs = [(library.malloc(size), library.malloc(_SMALL[0])) for size in _SMALL for _ in range(_RESERVED)]
    for block, _ in pairs:
        library.free(block)


def _is_typed() -> bool:
    main = vars(sys.modules["__main__"])  # its file is <stdin>, or it has none
    return "-c" not in sys.orig_argv and not ("__file__" in main and os.path.isfile(main["__file__"]))


def _is_glibc() -> bool:
    try:
        return sys.platform == "linux" and bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError):  # another C library
        return False


def zeros_in_huge_pages(size: int) -> mmap.mmap | None:
    """Return `size` bytes of zeros in pages of 2 MiB, where the system has them; else None.

    Memory that is read in pieces of some kilobytes is read up to twice as fast so: small pages of one array lie anywhere in memory and
    take each other's places in a processor's cache.
    """
    if size < _HUGE_PAGE or sys.platform != "linux":
        return None
    try:
        found = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        found.madvise(mmap.MADV_HUGEPAGE)
    except (OSError, ValueError):
        return None
    return found
