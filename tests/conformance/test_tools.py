"""Tools people point at a port: curl gets an error soon, h2load gets every answer."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

TIMED_OUT = 28


def curl(address, *arguments):
    """Exit status, HTTP status and headers."""
    words = [
        "curl",
        "--silent",
        "--http2-prior-knowledge",
        "--max-time",
        "8",
        "--dump-header",
        "-",
        "--output",
        "/dev/null",
    ]
    done = subprocess.run([*words, *arguments, address], capture_output=True, text=True, timeout=20, check=False)
    found = re.search(r"^HTTP/2 (\d+)", done.stdout)
    headers = dict(re.findall(r"^([a-z-]+): (.*?)\r?$", done.stdout, re.MULTILINE))
    return done.returncode, int(found[1]) if found else 0, headers


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--data", "a=1"],
        ["--data", "{}", "--header", "content-type: application/json"],
        ["--request", "DELETE"],
        ["--head"],
        ["--upload-file", "/dev/null"],
    ],
    ids=["GET", "POST", "POST JSON", "DELETE", "HEAD", "PUT"],
)
@pytest.mark.parametrize("path", ["/", "/metrics", "/inference.GRPCInferenceService/Nothing"])
def test_curl_gets_an_error_of_http_or_grpc_and_never_waits(server, caller, arguments, path):
    status, code, headers = curl(f"http://{server.grpc}{path}", *arguments)
    assert status != TIMED_OUT
    was_reset = status != 0
    assert was_reset or code >= 400 or headers.get("grpc-status", "0") != "0"
    assert caller.client.live()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_can_make_a_whole_call(server, tmp_path, http2, infer, body_of, values_of):
    (tmp_path / "body").write_bytes(http2.framed(body_of("double", [[1.0, 2.0]])))
    words = ["curl", "--silent", "--http2-prior-knowledge", "--max-time", "8", "--data-binary", f"@{tmp_path}/body"]
    words += ["--header", "content-type: application/grpc", "--header", "te: trailers", f"http://{server.grpc}{infer}"]
    done = subprocess.run(words, capture_output=True, timeout=20, check=True)
    assert values_of(done.stdout[5:]).tolist() == [[2, 4]]


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed (Debian: nghttp2-client)")
def test_2000_calls_of_h2load_all_succeed(process, calling, tmp_path, http2, infer, body_of):
    server = process()
    (tmp_path / "body").write_bytes(http2.framed(body_of("logistic", [[0.5] * 8])))
    words = ["h2load", "-c", "4", "-m", "16", "-n", "2000", "-d", str(tmp_path / "body")]
    words += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{server.grpc}{infer}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert "2000 succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout
    assert "2000 2xx" in done.stdout
    assert calling(server).counts("logistic").phases["success"].count == 2000
