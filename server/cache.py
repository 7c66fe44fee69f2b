"""Which versions keep their answers, for how long, in how much memory, and which share them with other servers.

The cache itself is `kernels/cache.pyx`. It belongs to one version from loading to its last answer, so a new version
never answers from an older one's. What servers share is `server/shared.py`: a second tier, in a Redis.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field, field_validator

from penstock import __version__
from penstock.features.errors import StoreMisconfigured
from penstock.features.schema import FeatureView
from penstock.kernels.cache import MIN_BYTES, Cache
from penstock.kernels.wire import Plan
from penstock.registry.manifest import Manifest
from penstock.server.sealed import identity_of
from penstock.server.shared import Shared

WHAT = "the shared cache"
"""What a Redis that answers are shared through is called in errors."""
ALL = "*"
"""In the settings: every model that is not named."""
LONGEST_S = 1_000_000.0
_log = logging.getLogger("penstock.server")


class CacheSettings(BaseModel):
    """What one model's versions may keep, each of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    bytes: int = Field(default=64 << 20, ge=MIN_BYTES, lt=1 << 36, description="of memory, for each version")
    ttl_s: float = Field(default=60.0, gt=0, le=LONGEST_S, description="how long an answer may be given again")
    joined_ttl_s: float | None = Field(
        default=None, gt=0, le=LONGEST_S, description="the same where features are looked up; without it none is kept"
    )
    shared: str | None = Field(
        default=None, repr=False, description="URL of a Redis through which servers share answers"
    )
    shared_timeout_ms: float = Field(default=10.0, gt=0, le=1e6, description="for one look-up of a batch there")

    @field_validator("shared")
    @classmethod
    def _usable(cls, value: str | None) -> str | None:
        if value is not None:
            from penstock.features.connecting import connector

            try:
                connector(value, WHAT)
            except StoreMisconfigured as error:
                raise ValueError(str(error)) from error
        return value


def explained(error_type: str, *, of_name: bool) -> str:
    """What is wrong with the settings of a cache where pydantic's own words would not say what is allowed; or ""."""
    if of_name:
        return "a model's name is a text; put it in quotes"
    fields = ", ".join(CacheSettings.model_fields)
    return {
        "dict_type": "it is a mapping of models to settings, as cache: {MODEL: {ttl_s: 60}}; * is every other model",
        "string_type": "it is the URL of a Redis, as redis://host:6379/1",
        "model_type": f"a model's cache is a mapping with some of {fields}; {{}} takes the defaults",
        "extra_forbidden": f"a model's cache has {fields}, and nothing of this name",
    }.get(error_type, "")


def cache_of(
    model: str, plan: Plan, views: Sequence[FeatureView], settings: Mapping[str, CacheSettings]
) -> Cache | None:
    """The cache of one version; None where it is to have none.

    Args:
        model: its name.
        plan: what it takes and gives.
        views: the feature views it joins. Their rows change while the request stays the same, so only the operator can
            say how old an answer may be; it is kept no longer than a row may live, or than it is fresh.
        settings: by model; `ALL` stands for those not named.
    """
    chosen = _chosen(model, settings)
    if chosen is None:
        return None
    ttl_s = chosen.ttl_s
    if views:
        if chosen.joined_ttl_s is None:
            _log.warning("%s joins features, so its answers are not cached: set joined_ttl_s to allow it", model)
            return None
        ages = [view.max_age_s for view in views if view.max_age_s is not None]
        ttl_s = min(ttl_s, chosen.joined_ttl_s, *(view.ttl_s for view in views), *ages)
    return Cache(plan, size=chosen.bytes, ttl_ns=max(int(ttl_s * 1e9), 1))


def _chosen(model: str, settings: Mapping[str, CacheSettings]) -> CacheSettings | None:
    return settings.get(model, settings.get(ALL))


def shared_of(
    manifest: Manifest,
    digest: str,
    cache: Cache | None,
    settings: Mapping[str, CacheSettings],
    *,
    features: str,
    functions: Mapping[str, str],
) -> Shared | None:
    """Where one version shares its answers; None where it does not. Nothing is connected to yet.

    Args:
        manifest: of the version.
        digest: of the version, which stands for all of its content.
        cache: its own.
        settings: by model; `ALL` stands for those not named.
        features: URL of the feature store: only servers that look features up at the same place share what they gave.
        functions: those that answers may come from, with where the operator has them: no part of the version.
    """
    chosen = _chosen(manifest.model_name, settings)
    if cache is None or chosen is None or chosen.shared is None:
        return None
    place = _place_of(features) if manifest.signature.entity else "nowhere"
    if not place:
        _log.warning(
            "%s joins features of a store that no other server has, so its answers are not shared", manifest.model_name
        )
        return None
    from penstock.features.values import Values

    name = f"{manifest.model_name}/{manifest.version}"
    return Shared(
        Values(chosen.shared, WHAT),
        prefix=b"cache:{%s}:" % digest[:16].encode(),
        identity=identity_of(__version__, name, digest, place, *map("=".join, sorted(functions.items()))),
        ttl_ns=cache.ttl_ns,
        timeout_s=chosen.shared_timeout_ms / 1000,
        name=name,
    )


def _place_of(features: str) -> str:
    """A feature store's URL without who asks; empty for one of this process alone."""
    if re.match(r"(rediss?(\+cluster|\+sentinel)?|unix):", features) or re.match(r"embedded://.", features):
        return re.sub(r"//[^/]*@", "//", features)
    return ""
