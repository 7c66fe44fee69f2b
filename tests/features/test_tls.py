"""A real Redis with TLS and ACL users: who may read, who may not, and that nothing passes that is not trusted."""

import importlib.util
import ssl
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import redis

from penstock.features import Column, FeatureView, Lookup, StoreMisconfigured, StoreUnavailable, open_store
from penstock.features.connecting import connector

OK, ABSENT = 0, 1
VIEW = FeatureView(name="v", entity="e", columns=[Column(name="a", dtype="float32")])
READER = ("on", ">right", "resetkeys", "~fs:*", "~features:*", "resetchannels", "-@all", "+mget", "+get", "+hmget")
MORE = ("+hgetall", "+ping", "+select", "+cluster|slots", "+asking", "+role")


def _load(name):
    spec = importlib.util.spec_from_file_location(f"feature_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers = _load("servers")


ABLE = [parameter for parameter in servers.VERSIONS if servers.speaks_tls(parameter.values[0])]


@pytest.fixture(scope="module", params=ABLE or [pytest.param("", marks=pytest.mark.skip(reason="no Redis with TLS"))])
def server(request, certificates):
    files = {"tls_cert_file": "server.pem", "tls_key_file": "server.key", "tls_ca_cert_file": "ca.pem"}
    options = {name: certificates / file for name, file in files.items()}
    with closing(servers.RedisProcess(request.param, tls=True, tls_auth_clients="optional", **options)) as server:
        trusted = {"ssl": True, "ssl_ca_certs": str(certificates / "ca.pem")}
        with redis.Redis(port=server.port, **trusted) as client:
            client.execute_command("ACL", "SETUSER", "reader", *READER, *MORE)
            yield server, client


def url(server, certificates, login="", **options):
    options = {"ssl_ca_certs": certificates / "ca.pem"} | options
    query = "&".join(f"{name}={value}" for name, value in options.items() if value)
    return f"rediss://{login}localhost:{server[0].port}?{query}"


def fetched(store):
    return store.fetch([Lookup(VIEW, [b"1", b"2"])], 2)[0].status.tolist()


def test_rows_are_written_and_read_over_tls(server, certificates):
    with closing(open_store(url(server, certificates))) as store:
        store.put(VIEW, [b"1"], {"a": np.ones(1, np.float32)})
        assert fetched(store) == [OK, ABSENT]


def test_a_user_who_may_only_read_rows_reads_and_does_no_more(server, certificates):
    """The rights in docs/features.md are enough for serving."""
    with closing(open_store(url(server, certificates, "reader:right@"))) as store:
        store.ping()
        assert fetched(store)[1] == ABSENT
        with pytest.raises(StoreMisconfigured, match=r"reader|permissions"):
            store.put(VIEW, [b"1"], {"a": np.ones(1, np.float32)})
        assert store.views() == []
    page = (Path(__file__).parents[2] / "docs" / "reading.md").read_text("utf-8")
    assert " ".join([*READER[2:], *MORE]) in " ".join(page.replace("\\\n", " ").split())


def test_a_wrong_password_is_a_misconfiguration_that_does_not_show_it(server, certificates):
    with closing(open_store(url(server, certificates, "reader:hunter2@"))) as store:
        with pytest.raises(StoreMisconfigured, match="invalid username-password") as caught:
            fetched(store)
        assert "hunter2" not in repr(caught.value)


@pytest.mark.parametrize("options", [{"ssl_ca_certs": ""}, {"ssl_ca_certs": "another_ca.pem"}])
def test_a_server_that_is_not_trusted_is_a_misconfiguration(server, certificates, options):
    named = {name: value and certificates / value for name, value in options.items()}
    refused = pytest.raises(StoreMisconfigured, match="CERTIFICATE_VERIFY_FAILED")
    with closing(open_store(url(server, certificates, **named))) as store, refused:
        fetched(store)


def test_the_name_of_a_server_is_checked(server, certificates):
    """Its certificate is for localhost and 127.0.0.1."""
    refused = pytest.raises((StoreMisconfigured, StoreUnavailable))
    with closing(open_store(url(server, certificates).replace("localhost", "127.0.0.2"))) as store, refused:
        fetched(store)


def test_a_server_that_asks_for_a_certificate_gets_ours_or_refuses(server, certificates):
    server[1].config_set("tls-auth-clients", "yes")
    try:
        ours = {"ssl_certfile": certificates / "client.pem", "ssl_keyfile": certificates / "client.key"}
        with closing(open_store(url(server, certificates, **ours))) as store:
            assert fetched(store)[1] == ABSENT
        refused = pytest.raises((StoreMisconfigured, StoreUnavailable))
        with closing(open_store(url(server, certificates))) as store, refused:
            fetched(store)
    finally:
        trusted = {"ssl_ca_certs": str(certificates / "ca.pem")}
        own = {"ssl_certfile": str(certificates / "client.pem"), "ssl_keyfile": str(certificates / "client.key")}
        with redis.Redis(port=server[0].port, ssl=True, **trusted, **own) as client:
            client.config_set("tls-auth-clients", "optional")


def test_old_versions_of_tls_are_refused():
    assert connector("rediss://h").options["ssl_min_version"] == ssl.TLSVersion.TLSv1_2
