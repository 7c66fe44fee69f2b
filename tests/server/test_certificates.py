"""The files of TLS: refused by name at the start, taken up when they change."""

from __future__ import annotations

import logging
import shutil
import subprocess

import pytest

from penstock.server.certificates import Certificates, Renewal
from penstock.server.errors import BadConfig


@pytest.fixture
def files(tmp_path, certificates):
    """A pair of our own that may be changed."""
    for name in ("server.pem", "server.key"):
        shutil.copy(certificates / name, tmp_path)
    return Certificates(tmp_path / "server.pem", tmp_path / "server.key", certificates / "ca.pem")


def test_what_fits_is_read_whole(files, certificates):
    pems = files.read()
    assert pems.certificate == (certificates / "server.pem").read_bytes()
    assert pems.key == (certificates / "server.key").read_bytes()
    assert pems.client_ca == (certificates / "ca.pem").read_bytes()
    assert Certificates(files.certificate, files.key).read().client_ca is None


def refused(files):
    with pytest.raises(BadConfig) as caught:
        files.read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_told_by_setting_and_file(files, certificates, tmp_path):
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("no PEM\n")
    chain, key = files.certificate, files.key
    assert refused(Certificates(tmp_path / "none", key)) == (
        f"tls_certificate: {tmp_path}/none cannot be read: No such file or directory"
    )
    assert refused(Certificates(chain, tmp_path)).startswith(f"tls_key: {tmp_path} cannot be read: ")
    assert "do not belong together" in refused(Certificates(chain, certificates / "client.key"))
    assert f"{rubbish} and {key} are refused" in refused(Certificates(rubbish, key))
    assert refused(Certificates(chain, key, rubbish)).startswith(f"tls_client_ca: {rubbish} is refused: ")
    assert refused(Certificates(chain, key, tmp_path / "none")).startswith("tls_client_ca: ")


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(files, tmp_path):
    locked = tmp_path / "locked.key"
    words = ["openssl", "pkey", "-in", str(files.key), "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(words, check=True, capture_output=True)
    assert "password" in refused(Certificates(files.certificate, locked))


def test_a_renewed_certificate_is_told_once(files, certificates):
    renewal = Renewal(files)
    assert renewal.changed() is None
    shutil.copy(certificates / "client.pem", files.certificate)
    shutil.copy(certificates / "client.key", files.key)
    pems = renewal.changed()
    assert pems is renewal.current
    assert pems.certificate == (certificates / "client.pem").read_bytes()
    assert renewal.changed() is None


def test_half_a_renewal_is_logged_once_and_waits_for_the_other_half(files, certificates, caplog):
    renewal = Renewal(files)
    before = renewal.current
    with caplog.at_level(logging.WARNING, "penstock.server"):
        shutil.copy(certificates / "client.pem", files.certificate)
        assert renewal.changed() is None
        assert renewal.changed() is None
    (record,) = caplog.records
    assert record.getMessage() == (
        f"tls_certificate, tls_key: {files.certificate} and {files.key} do not belong together; "
        "the certificate in use goes on"
    )
    assert renewal.current is before
    shutil.copy(certificates / "client.key", files.key)
    assert renewal.changed().key == (certificates / "client.key").read_bytes()


def test_a_file_that_is_gone_for_a_moment_changes_nothing(files):
    renewal = Renewal(files)
    key = files.key.read_bytes()
    files.key.unlink()
    assert renewal.changed() is None
    files.key.write_bytes(key)
    assert renewal.changed().key == key
