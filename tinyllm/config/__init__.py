"""Settings: typed, frozen, from several sources, each with its origin, and every mistake reported at once.

A room declares its settings as a `Config`; a command asks `load` for its own. `base` says what settings are, `load`
puts them together, `yaml12` reads and writes files, `complaints` and `hints` find the words for mistakes. Left out:
interpolation, includes of several files, and classes named in YAML.
"""

from tinyllm.config.base import Config, dump, flat
from tinyllm.config.hints import suggest
from tinyllm.config.load import RESERVED_ENVIRONMENT, Resolved, load, parse_set

__all__ = ["RESERVED_ENVIRONMENT", "Config", "Resolved", "dump", "flat", "load", "parse_set", "suggest"]
