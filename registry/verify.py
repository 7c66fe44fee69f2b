"""Reading a version: nothing leaves here whose bytes were not hashed and found as published.

The folder is opened once and everything in it relative to that descriptor, through no link. Sizes come from the
manifest, whose own size is bounded, and are compared with the files before a byte is read. The bytes handed out are
the bytes that were hashed; nothing is opened a second time. A file the manifest does not list refuses the version,
since an ONNX graph may name neighbours.

Cost: one read and one SHA-256 over the version, about 1 to 2 GB/s with the CPU's SHA instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pydantic import ValidationError

from penstock.registry import files
from penstock.registry.errors import CorruptVersion, UnknownModel, UnknownVersion
from penstock.registry.manifest import MAX_FILE_BYTES, MAX_MANIFEST_BYTES, FileEntry, Manifest
from penstock.registry.names import MANIFEST, is_name, is_version


@dataclass(frozen=True, slots=True)
class Version:
    """A verified version in memory. `digest` is the SHA-256 of its manifest.json, and so names all of its content."""

    manifest: Manifest
    files: dict[str, bytes]
    digest: str


def model_names(root: Path) -> list[str]:
    """Models with at least one version, sorted; folders that publishing never makes are passed over."""
    try:
        with files.opened(root, "models") as models:
            return [name for name in files.listing(models) if is_name(name) and _has_version(models, name)]
    except FileNotFoundError:
        return []


def _has_version(models: int, name: str) -> bool:
    try:
        with files.opened(models, name, "versions") as folder:
            return bool(complete_versions(folder))
    except (FileNotFoundError, files.Refused):
        return False


def complete_versions(folder: int) -> list[int]:
    """Numbers in a versions folder that hold a manifest, ascending. Others are half-written, and no version."""
    numbers = taken_numbers(folder)
    return [number for number in numbers if files.holds(folder, str(number), MANIFEST)]


def taken_numbers(folder: int) -> list[int]:
    """Every number in a versions folder that cannot be given again, ascending."""
    return sorted(int(name) for name in files.listing(folder) if is_version(name))


def version_numbers(root: Path, name: str) -> list[int]:
    """Versions of the model, ascending; `UnknownModel` if there is none."""
    try:
        with files.opened(root, "models", name, "versions") as folder:
            numbers = complete_versions(folder)
    except FileNotFoundError:
        numbers = []
    except files.Refused as refused:
        raise UnknownModel(f"model {name!r} in {root} is refused: {refused}; publishing makes plain folders") from None
    if not numbers:
        raise unknown_model(root, name)
    return numbers


def unknown_model(root: Path, name: str) -> UnknownModel:
    """The error for a model without versions, naming the models there are."""
    known = ", ".join(model_names(root)) or "none yet"
    return UnknownModel(f"no model called {name!r} in {root}; models there: {known}")


def unknown_version(root: Path, name: str, version: int) -> UnknownVersion:
    """The error for a version that is not there, naming those that are."""
    known = ", ".join(map(str, version_numbers(root, name)))
    return UnknownVersion(f"model {name!r} has no version {version}; versions there: {known}")


def read_manifest(root: Path, name: str, version: int) -> Manifest:
    """The manifest alone, parsed and checked; the other files are neither read nor verified."""
    with _version_folder(root, name, version) as folder:
        return _parse(_manifest_bytes(folder), name, version)


def load_version(root: Path, name: str, version: int) -> Version:
    """All files of a version in memory, verified."""
    with _version_folder(root, name, version) as folder:
        raw = _manifest_bytes(folder)
        manifest = _parse(raw, name, version)
        contents = dict(_verified(folder, manifest))
    return Version(manifest, contents, sha256(raw).hexdigest())


def verify_version(root: Path, name: str, version: int) -> Manifest:
    """Verify all files of a version, holding one in memory at a time."""
    with _version_folder(root, name, version) as folder:
        manifest = _parse(_manifest_bytes(folder), name, version)
        for _ in _verified(folder, manifest):
            pass
    return manifest


@contextmanager
def _version_folder(root: Path, name: str, version: int) -> Iterator[int]:
    """Open the version's folder; what is refused inside the block becomes `CorruptVersion`."""
    try:
        with files.opened(root, "models", name, "versions", str(version)) as folder:
            yield folder
    except FileNotFoundError:
        raise unknown_version(root, name, version) from None
    except files.Refused as refused:
        where = root / "models" / name / "versions" / str(version)
        raise CorruptVersion(
            f"{name} version {version} is refused: {refused}. "
            f"Restore {where} from a copy, or remove it and publish the model again"
        ) from None


def _manifest_bytes(folder: int) -> bytes:
    try:
        return files.read(folder, MANIFEST, MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        raise files.Refused(f"it has no {MANIFEST}, so it is half-written") from None


def _parse(raw: bytes, name: str, version: int) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise files.Refused(f"{MANIFEST} does not parse: {first_problem(error)}") from None
    if (manifest.model_name, manifest.version) != (name, version):
        told = f"{manifest.model_name!r} version {manifest.version}"
        raise files.Refused(f"{MANIFEST} belongs to another folder, it says {told}")
    return manifest


def first_problem(error: ValidationError) -> str:
    """The first problem of a pydantic error as `field: what is wrong`, on one line."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(map(str, problem["loc"]))
    if field == "format":
        return "it has a format that this release does not read; upgrade Penstock"
    text = problem["msg"].removeprefix("Value error, ").replace("\n", " ")
    return f"{field}: {text}" if field else text


def _verified(folder: int, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    listed = manifest.files
    if strange := [name for name in listed if not is_name(name) or name == MANIFEST]:
        raise files.Refused(f"{MANIFEST} lists {strange[0]!r}, which cannot be a file name here")
    if unlisted := [name for name in files.listing(folder) if name not in listed and name != MANIFEST]:
        raise files.Refused(f"{unlisted[0]!r} is in the folder but not listed in {MANIFEST}")
    for name, entry in sorted(listed.items()):
        yield name, _verified_file(folder, name, entry)


def _verified_file(folder: int, name: str, entry: FileEntry) -> bytes:
    try:
        content = files.read(folder, name, MAX_FILE_BYTES, size=entry.size)
    except FileNotFoundError:
        raise files.Refused(f"{name} is missing") from None
    found = sha256(content).hexdigest()
    if found != entry.sha256:
        raise files.Refused(f"{name} was changed: its sha256 begins {found[:12]}, published was {entry.sha256[:12]}")
    return content
