"""C files of this package: compiled when they are first needed, in about a second, and kept in the user's cache folder.

`CC` names another compiler than `cc`, `XDG_CACHE_HOME` another place, and `TINYLLM_NATIVE=0` turns them off. Whatever they compute is
computed by torch's operations where they cannot be compiled.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

_HEADER = Path(__file__).with_name("vector.h")
_FLAGS = (
    "-O3 -march=native -mprefer-vector-width=512 -fPIC -fopenmp-simd "
    "-fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math -freciprocal-math"
)
_WIDE, _X86 = "-mprefer-vector-width=512", ("x86_64", "AMD64")


def structure(name: str, integers: str = "", floats: str = "", pointers: str = "") -> type[ctypes.Structure]:
    """Return a structure of a C file: its 64-bit integers, floats and pointers, in this order."""
    kinds = ((integers, ctypes.c_int64), (floats, ctypes.c_float), (pointers, ctypes.c_void_p))
    fields = [(field, kind) for names, kind in kinds for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def is_enabled() -> bool:
    """Return whether functions of this package and of other libraries that are not torch's may be used: TINYLLM_NATIVE is not 0."""
    return os.environ.get("TINYLLM_NATIVE", "1") != "0"


@cache
def load(source: Path) -> ctypes.CDLL | None:
    """Return the functions of a C file; None where there is no compiler, or TINYLLM_NATIVE is 0."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or sys.platform == "win32" or not is_enabled():
        return None
    openmp = openmp_of_torch()
    flags = [flag for flag in _FLAGS.split() if platform.machine() in _X86 or flag != _WIDE]
    flags += ["-fopenmp"] if openmp else []
    try:
        if openmp:  # torch's own: with a second one, the threads of both would wait for each other's
            ctypes.CDLL(openmp, ctypes.RTLD_GLOBAL)
        folder = _folder()
        if folder is not None:
            return ctypes.CDLL(str(_kept(source, compiler, flags, folder)))
        with tempfile.TemporaryDirectory(prefix="tinyllm-") as temporary:  # a library that is loaded needs no file
            return ctypes.CDLL(str(_compiled(source, compiler, flags, Path(temporary))))
    except (OSError, subprocess.SubprocessError):
        return None


def _kept(source: Path, compiler: str, flags: list[str], folder: Path) -> Path:
    """Return the library in the cache folder, compiled if it is not there or not whole."""
    parts = source.read_bytes(), _HEADER.read_bytes(), compiler.encode(), " ".join(flags).encode(), _processor()
    path = folder / f"{source.stem}-{hashlib.sha256(bytes(0).join(parts)).hexdigest()[:20]}.so"
    digest = path.with_suffix(".sha256")
    # a file that a full disk has cut off would stop the process when it is loaded
    if not (path.is_file() and digest.is_file() and digest.read_text() == _sha256(path)):
        with tempfile.TemporaryDirectory(dir=folder) as temporary:  # several processes may compile at once
            made = _compiled(source, compiler, flags, Path(temporary))
            (Path(temporary) / "sha256").write_text(_sha256(made))
            made.replace(path)
            (Path(temporary) / "sha256").replace(digest)
    return path


def _compiled(source: Path, compiler: str, flags: list[str], folder: Path) -> Path:
    """Compile a C file in a folder. Linked without OpenMP: its functions are those that torch has loaded."""
    objects, made = folder / "functions.o", folder / "functions.so"
    for command in (
        ["-c", str(source), "-o", str(objects), *flags],
        ["-shared", "-o", str(made), str(objects), "-lm"],
    ):
        subprocess.run([compiler, *command], check=True, capture_output=True, timeout=60)
    return made


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def openmp_of_torch() -> str:
    """Return the path of the OpenMP library that came with torch, if it is loaded; else "": functions then have one thread."""
    maps, libraries = Path("/proc/self/maps"), Path(torch.__file__).parent
    if not maps.is_file():
        return ""
    places = (f"{libraries}{os.sep}", f"{libraries}.libs{os.sep}")
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text(errors="replace").splitlines() if "libgomp" in line}
    return min((path for path in paths if path.startswith(places)), default="")


def _processor() -> bytes:
    """Return what tells processors apart whose compiled code differs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_bytes().splitlines() if info.is_file() else []
    named = (line for line in lines if line.startswith((b"flags", b"Features")))
    return next(named, (platform.processor() + platform.machine()).encode())


def _folder() -> Path | None:
    """Return the user's cache folder; None where there is none, or where others may write into it."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyllm"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    own = found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if own and os.access(folder, os.W_OK) else None
