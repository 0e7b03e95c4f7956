"""Settings: typed and frozen, merged from several sources, with the origin of every value and all problems reported at once.

Settings are declared as a `Config` beside the code that reads them; a command calls `load`. `base` defines `Config`; `choices` takes
fields and sections from registries; `load` and `files` merge the sources; `yaml12` reads and writes YAML; `validation_errors`, `schemas`,
`suggestions` and `formatting` make the messages.
Left out: interpolation, includes of several files, and classes named in YAML.
"""

from tinyllm.config.base import Config, dump, flatten, list_to_tuple
from tinyllm.config.choices import OneOf, with_sections
from tinyllm.config.load import RESERVED_ENVIRONMENT, Resolved, load, parse_set
from tinyllm.config.suggestions import nearest, suggest
from tinyllm.config.values import differences, validate

__all__ = [
    "RESERVED_ENVIRONMENT",
    "Config",
    "OneOf",
    "Resolved",
    "differences",
    "dump",
    "flatten",
    "list_to_tuple",
    "load",
    "nearest",
    "parse_set",
    "suggest",
    "validate",
    "with_sections",
]
