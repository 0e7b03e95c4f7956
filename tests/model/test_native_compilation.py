"""C files that are compiled when they are first needed, and what happens where they cannot be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tinyllm.model.decoding import native
from tinyllm.model.native import compilation

SOURCE = Path(native.__file__).with_name("native.c")

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no C compiler")


def found_with(patch: pytest.MonkeyPatch, **variables: str | None) -> bool:
    """Whether there is a library in a process with these variables."""
    for name, value in variables.items():
        if value is None:
            patch.delenv(name, raising=False)
        else:
            patch.setenv(name, value)
    return compilation.load.__wrapped__(SOURCE) is not None


def test_a_folder_that_cannot_be_written_or_a_compiler_that_fails_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, file = tmp_path / "cc", tmp_path / "file"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert found_with(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "home", lambda: Path("~nobody-of-this-name").expanduser())
        assert found_with(patch, XDG_CACHE_HOME=None)
    for variables in ({"CC": str(compiler)}, {"CC": "no-such-compiler"}, {"TINYLLM_NATIVE": "0"}):
        with monkeypatch.context() as patch:
            assert not found_with(patch, **variables)


@pytest.mark.slow
def test_several_that_compile_at_once_and_files_that_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda _: compilation.load.__wrapped__(SOURCE) is not None, range(4)))
    folder = tmp_path / "tinyllm"
    assert sorted(path.suffix for path in folder.iterdir()) == [".sha256", ".so"]
    library = next(folder.glob("*.so"))
    for wrong in (library.read_bytes()[:1000], b""):
        library.unlink()  # this process has it loaded
        library.write_bytes(wrong)
        assert found_with(monkeypatch)
        assert library.read_bytes() != wrong
    folder.chmod(0o777)  # others may have put a library there: it is compiled elsewhere
    library.unlink()
    library.write_bytes(b"")
    assert found_with(monkeypatch)
    assert library.read_bytes() == b""


def test_the_sources_are_part_of_the_package() -> None:
    folder = Path(compilation.__file__).parent
    assert SOURCE.is_file()
    assert all((folder / name).is_file() for name in ("vector.h", "kernels.c"))
