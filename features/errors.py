"""Errors of the feature store, divided by who must act.

    FeatureError
    ├── StoreUnavailable     the store is down, slow or busy: wait, answer in a degraded mode, look at its host
    ├── StoreMisconfigured   it answers, but refuses us: password, ACL, TLS, URL, cluster mode
    ├── InvalidView          a definition of a view that cannot be used
    ├── UnknownView          a name that nobody applied
    ├── SchemaChanged        a view applied again with other columns
    ├── InvalidData          values that do not fit the view
    ├── TransformError       transforms that cannot be read, or do not fit the columns or functions they should run on
    ├── HistoryUnwritable    the disk does not take the history of features: make room, and go on where it stopped
    └── RowsLost             the store no longer has what it had acknowledged: ingest again

Messages name the host of a store, never its password.
"""

from __future__ import annotations

from penstock.errors import PenstockError


class FeatureError(PenstockError):
    """Root of this room's errors."""


class StoreUnavailable(FeatureError):  # noqa: N818 -- the state of the store, as gRPC's UNAVAILABLE
    """The store is down or slow, or was a moment ago and is not tried again yet."""


class StoreMisconfigured(FeatureError):  # noqa: N818
    """The store refuses us, or its URL cannot be used; trying again does not help."""


class InvalidView(FeatureError):  # noqa: N818
    """The definition of a feature view breaks a rule."""


class UnknownView(FeatureError):  # noqa: N818
    """No view of that name was applied to the store."""


class SchemaChanged(FeatureError):  # noqa: N818
    """A view of that name exists with other columns; its rows would read as missing."""


class InvalidData(FeatureError):  # noqa: N818
    """Entities or values that do not fit the view."""


class TransformError(FeatureError):
    """Transforms that cannot be read, that do not fit the columns they should run on, or whose function failed."""


class HistoryUnwritable(FeatureError):  # noqa: N818
    """History of features cannot be written where it should be; what was committed before stays."""


class RowsLost(FeatureError):  # noqa: N818
    """Rows that the store had acknowledged are gone, or two ingestions of one file disturb each other."""
