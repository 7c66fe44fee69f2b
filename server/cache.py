"""Which versions keep their answers, for how long and in how much memory. The cache itself is `kernels/cache.pyx`.

A cache belongs to one version from loading to its last answer, so a new version never answers from an older one's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from penstock.features.schema import FeatureView
from penstock.kernels.cache import MIN_BYTES, Cache
from penstock.kernels.wire import Plan

ALL = "*"
"""In the settings: every model that is not named."""
LONGEST_S = 1_000_000.0
_log = logging.getLogger("penstock.server")


class CacheSettings(BaseModel):
    """What one model's versions may keep, each of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bytes: int = Field(default=64 << 20, ge=MIN_BYTES, lt=1 << 36, description="of memory, for each version")
    ttl_s: float = Field(default=60.0, gt=0, le=LONGEST_S, description="how long an answer may be given again")
    joined_ttl_s: float | None = Field(
        default=None, gt=0, le=LONGEST_S, description="the same where features are looked up; without it none is kept"
    )


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
    chosen = settings.get(model, settings.get(ALL))
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
