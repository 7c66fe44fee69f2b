"""Which store is behind a URL.

    redis://[user:password@]host[:port][/db]   rediss:// (TLS)   unix:///path.sock
    redis+cluster://host,host,...              redis+sentinel://host,host,.../service   and with rediss for TLS
    embedded://            a private redis-server, gone with this process
    embedded:///folder     one kept in a folder, shared by the processes that open it
    memory:// [name]       a dictionary in this process, for tests

Network stores connect at first use.
"""

from __future__ import annotations

from penstock.features.errors import StoreMisconfigured
from penstock.features.store import FeatureStore

REDIS = {
    "redis",
    "rediss",
    "unix",
    *(f"{one}+{kind}" for one in ("redis", "rediss") for kind in ("cluster", "sentinel")),
}


def open_store(url: str) -> FeatureStore:
    """The store behind `url`. Network stores connect at first use; raises `StoreMisconfigured` for a bad URL."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme in REDIS:
        from penstock.features.redis import RedisStore

        return RedisStore(url)
    if separator and scheme == "embedded":
        from penstock.features.embedded import EmbeddedStore

        return EmbeddedStore(rest)
    if separator and scheme == "memory":
        from penstock.features.memory import MemoryStore

        return MemoryStore.named(rest)
    known = "redis://, rediss://, redis+cluster://, redis+sentinel://, unix://, embedded:// and memory://"
    shown = f"{scheme}://..." if separator else "no scheme"  # the rest may hold a password
    raise StoreMisconfigured(f"a feature store's URL begins with {known}; this one has {shown}")
