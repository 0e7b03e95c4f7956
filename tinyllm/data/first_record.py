"""Check of the first record of every file, before torch is imported: most faults of a data file show in its first line.

Left out: standard input and other pipes, which can be read only once.
"""

from __future__ import annotations

from tinyllm.data.config import DataConfig, is_world
from tinyllm.data.records.reader import configured_reader


def check(data: DataConfig, kind: str) -> None:
    """Read the first record of every file of `data` as a record of `kind`.

    Raises: UserError for data that a stage that reads this kind would refuse.
    """
    for source in dict.fromkeys(data.sources):
        if not is_world(source) and source != "-":
            configured_reader([source], kind, data).check_first_records()
