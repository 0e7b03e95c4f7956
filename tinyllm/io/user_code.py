"""Python files of the user's own, named in a configuration or on the command line: rewards and algorithms."""

from __future__ import annotations

import hashlib
import sys
import traceback
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from tinyllm.errors import UserError

_PREFIX = "tinyllm_user_code_"


def load_module(path: Path, *, where: str) -> ModuleType:
    """Import a Python file. A file that has not changed since the last call is not executed again.

    Args:
        where: the option or key that names the file, for error messages.

    Raises:
        UserError: there is no such file, it is not valid Python, or it fails while it is imported.
    """
    if not path.is_file():
        raise UserError(f"no file {path}", where=where, fix="write the path relative to the current directory")
    status = path.stat()
    key = f"{path.resolve()}\n{status.st_mtime_ns}\n{status.st_size}"
    name = f"{_PREFIX}{path.stem}_{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    assert spec is not None, f"{path} does not end in .py"
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # pydantic and dataclasses look up annotations there
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[name]
        place = f"{error.filename}:{error.lineno}"
        raise UserError(f"not valid Python: {error.msg}", where=place, fix="fix the file at this location") from error
    except Exception as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == spec.origin]
        place = f"{path}:{lines[-1]}" if lines else str(path)
        what = f"importing the file failed: {type(error).__name__}: {error}"
        raise UserError(what, where=place, fix="fix the file at this location") from error
    return module
