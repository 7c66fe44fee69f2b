"""Published model versions as plain files: verified on load, published whole or not at all, every move recorded."""

from penstock.registry.aliases import Move
from penstock.registry.errors import (
    CorruptAliases,
    CorruptVersion,
    InvalidDraft,
    InvalidName,
    NothingEarlier,
    RegistryBusy,
    RegistryError,
    StorageError,
    UnknownAlias,
    UnknownModel,
    UnknownVersion,
)
from penstock.registry.manifest import Draft, FeatureSet, FileEntry, Manifest, Score, Signature, TensorSpec
from penstock.registry.store import Registry
from penstock.registry.verify import Version

__all__ = [
    "CorruptAliases",
    "CorruptVersion",
    "Draft",
    "FeatureSet",
    "FileEntry",
    "InvalidDraft",
    "InvalidName",
    "Manifest",
    "Move",
    "NothingEarlier",
    "Registry",
    "RegistryBusy",
    "RegistryError",
    "Score",
    "Signature",
    "StorageError",
    "TensorSpec",
    "UnknownAlias",
    "UnknownModel",
    "UnknownVersion",
    "Version",
]
