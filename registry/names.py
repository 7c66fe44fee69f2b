"""Which names may become folders and files: an allow-list, checked before a name meets the file system.

A name starts with a letter or digit and goes on with letters, digits, dot, underscore or dash, 128 characters at most.
So no name is hidden, absolute, a parent folder, or holds a separator, a space or a line end. Versions are whole numbers
from 1, which is why an alias must not look like one.
"""

from __future__ import annotations

import re

from penstock.registry.errors import InvalidName

MANIFEST = "manifest.json"
CHAMPION = "champion"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_RULE = "use letters, digits, '.', '_' and '-', starting with a letter or digit, at most 128 characters"


def is_name(text: str) -> bool:
    """Whether `text` may name a model, an alias or a file."""
    return _NAME.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Whether `text` is a version number as it is written in a folder's name."""
    return _VERSION.fullmatch(text) is not None


def check_model(name: str) -> str:
    """The name itself; `InvalidName` if it is outside the allow-list."""
    return _checked(name, "a model name")


def check_alias(alias: str) -> str:
    """The alias itself; `InvalidName` if it is outside the allow-list or reads as a version number."""
    if alias.isdigit():
        raise InvalidName(f"{alias!r} cannot be an alias, because it reads as a version number")
    return _checked(alias, "an alias")


def check_file(name: str) -> str:
    """The file name itself; `InvalidName` if it is outside the allow-list or taken by the manifest."""
    if name == MANIFEST:
        raise InvalidName(f"{MANIFEST} is written by the registry; leave it out of the files to publish")
    return _checked(name, "a file name")


def _checked(text: str, what: str) -> str:
    if not is_name(text):
        raise InvalidName(f"{text!r} cannot be {what}: {_RULE}")
    return text
