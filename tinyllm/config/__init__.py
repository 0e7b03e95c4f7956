"""Settings: typed, frozen, from several sources, each with its origin, and every mistake reported at once.

A room declares its settings as a `Config`; a command asks `load` for its own. `base` says what settings are, `load`
puts them together, `yaml12` reads and writes files, `complaints` and `hints` find the words for mistakes. Left out:
interpolation, includes of several files, and classes named in YAML.
"""

from tinyllm.config.base import Config, dump, flat
from tinyllm.config.hints import nearest, suggest
from tinyllm.config.load import RESERVED_ENVIRONMENT, Resolved, load, parse_set
from tinyllm.config.values import checked, differences

__all__ = [
    "RESERVED_ENVIRONMENT",
    "Config",
    "Resolved",
    "checked",
    "differences",
    "dump",
    "flat",
    "load",
    "nearest",
    "parse_set",
    "suggest",
]
