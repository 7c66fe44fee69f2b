"""Publishing: a version appears whole under its number, or not at all, whatever happens in between.

1. Stage: `<root>/.staging/<uuid>/` gets every file, each flushed to disk.
2. Number: one more than the highest taken; manifest.json is written last, with the digests, and the folder flushed.
3. Rename to `models/<name>/versions/<n>/`, never replacing. Taken meanwhile by another publisher? Next number.
4. Flush `versions/`. From here the version survives a power cut, and is never changed again.

A crash before 3 leaves only staging, which no reader looks at and a later publish removes after `STALE_STAGING_S`. An
error anywhere removes the staging and leaves what was there before; if flush 4 fails, the version is taken back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from penstock.registry import files
from penstock.registry.errors import InvalidDraft, RegistryBusy, StorageError
from penstock.registry.manifest import MAX_FILE_BYTES, MAX_MANIFEST_BYTES, Draft, FileEntry, Manifest
from penstock.registry.names import MANIFEST, check_file, check_model
from penstock.registry.verify import first_problem, taken_numbers

STAGING = ".staging"
STALE_STAGING_S = 24 * 3600
_MAX_ATTEMPTS = 1000  # each failed one means that another publisher succeeded


def publish_version(root: Path, draft: Draft, contents: Mapping[str, bytes]) -> Manifest:
    """Store `contents` as the next version of `draft.model_name`; raises InvalidDraft, InvalidName or StorageError."""
    entries = check_draft(draft, contents)
    try:
        files.make_root(root)
        with (
            files.ensured(root, STAGING) as staging,
            files.ensured(root, "models", draft.model_name, "versions") as versions,
        ):
            _sweep(staging, time.time())
            return _stage(staging, versions, draft, contents, entries)
    except files.Refused as refused:
        raise StorageError(f"cannot publish in {root}: {refused}; the registry needs plain folders") from None


def check_draft(draft: Draft, contents: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """Entries of the files to publish, once names and sizes are found to be allowed and the artifact is among them."""
    check_model(draft.model_name)
    if draft.artifact_path not in contents:
        raise InvalidDraft(f"{draft.artifact_path!r} is the version's artifact, but not among the files to publish")
    for name, content in contents.items():
        check_file(name)
        if len(content) > MAX_FILE_BYTES:
            raise InvalidDraft(f"{name} has {len(content):,} bytes; a version's file holds at most {MAX_FILE_BYTES:,}")
    return {name: FileEntry(size=len(c), sha256=sha256(c).hexdigest()) for name, c in contents.items()}


def _stage(
    staging: int, versions: int, draft: Draft, contents: Mapping[str, bytes], entries: dict[str, FileEntry]
) -> Manifest:
    with _staging_folder(staging) as name, files.opened(staging, name) as folder:
        for file_name, content in sorted(contents.items()):
            files.write_new(folder, file_name, content)
        for _ in range(_MAX_ATTEMPTS):
            manifest = _manifest(draft, max(taken_numbers(versions), default=0) + 1, entries)
            _write_manifest(folder, manifest)
            if _appear(staging, name, versions, manifest):
                return manifest
            files.remove(folder, MANIFEST)
    raise RegistryBusy(f"{_MAX_ATTEMPTS} other versions of {draft.model_name!r} were published meanwhile; try again")


@contextmanager
def _staging_folder(staging: int) -> Iterator[str]:
    """Make a folder of our own in the staging area; if the block fails, it goes with all it holds."""
    name = uuid4().hex
    try:
        files.make_folder(staging, name)
        yield name
    except BaseException:
        with suppress(OSError):
            files.remove_tree(staging, name)
        raise


def _manifest(draft: Draft, version: int, entries: dict[str, FileEntry]) -> Manifest:
    try:
        return Manifest(
            **{field: getattr(draft, field) for field in Draft.model_fields},
            format=2 if draft.signature.entity_keys else 1,
            version=version,
            created_at=datetime.now(UTC),
            files=entries,
        )
    except ValidationError as error:  # a draft built without validation
        raise InvalidDraft(
            f"the draft of {draft.model_name!r} does not hold together: {first_problem(error)}"
        ) from None


def _write_manifest(folder: int, manifest: Manifest) -> None:
    content = manifest.encode()
    if len(content) > MAX_MANIFEST_BYTES:
        size, limit = f"{len(content):,}", f"{MAX_MANIFEST_BYTES:,}"
        raise InvalidDraft(f"the manifest of {manifest.model_name!r} would have {size} bytes, more than {limit}")
    files.write_new(folder, MANIFEST, content)
    files.sync(folder)


def _appear(staging: int, name: str, versions: int, manifest: Manifest) -> bool:
    """Rename the staged folder to its number; False if another publisher has that number."""
    number = str(manifest.version)
    try:
        files.rename_new(staging, name, versions, number)
    except FileExistsError:
        return False
    except OSError:  # over NFS a rename may be reported as failed although it was done: look, do not guess
        if not _is_ours(versions, number, manifest):
            raise
    try:
        files.sync(versions)
    except OSError:
        files.rename_new(versions, number, staging, name)
        raise
    return True


def _is_ours(versions: int, number: str, manifest: Manifest) -> bool:
    try:
        with files.opened(versions, number) as folder:
            return files.read(folder, MANIFEST, MAX_MANIFEST_BYTES) == manifest.encode()
    except (OSError, files.Refused):
        return False


def _sweep(staging: int, now: float) -> None:
    """Remove what crashed publishers left, once it is old enough to be nobody's work."""
    with suppress(OSError):  # housekeeping never fails a publish
        for name in files.listing(staging):
            if files.age_s(staging, name, now) > STALE_STAGING_S:
                files.remove_tree(staging, name)
