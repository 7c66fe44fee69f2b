"""Triton's own client, in its current release, works against a real server unchanged.

It wants an older protobuf than ours and so lives in a virtual environment of its own under build/peers, made once and
made anew when the pinned requirement or the Python version changes.
"""

from __future__ import annotations

import json
import runpy
import subprocess
from pathlib import Path

import pytest

from penstock.benchmarks.peers import environment
from penstock.proto import inference_pb2
from penstock.registry import Registry

HERE = Path(__file__).parent
REQUIREMENT = "tritonclient[grpc]>=2.73"


@pytest.fixture(scope="session")
def peer_python():
    """A Python that has tritonclient; fails with pip's own words if it cannot be installed."""
    return environment("tritonclient", [REQUIREMENT])


@pytest.fixture(params=["grpcio", "native"])
def identity_server(request, tmp_path, penstock_server):
    """A server of each transport with identity models for all datatypes; BF16 apart, since ONNX Runtime will not run it
    with strings."""
    if request.param == "native":
        pytest.importorskip("penstock.kernels.http2", reason="this build has no native transport")
    identity = runpy.run_path(str(HERE / "identity.py"))
    others = tuple(name for name in identity["DATATYPES"] if name != "BF16")
    registry = Registry(tmp_path / "registry")
    identity["publish_identity"](registry, "identity", others)
    identity["publish_identity"](registry, "identity_bf16", ("BF16",))
    return penstock_server(registry.root, "--transport", request.param).grpc, ("identity", "identity_bf16")


@pytest.mark.timeout(300)
def test_tritonclient_reads_everything_and_infers_every_datatype(peer_python, identity_server):
    address, models = identity_server
    peer = [peer_python, HERE / "triton_peer.py", address, *models]
    done = subprocess.run(peer, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"ok      {model}: values" in done.stdout for model in models)


def test_every_field_method_and_value_of_our_proto_is_tritons(peer_python):
    """Names, numbers and types; what Triton has beyond ours is left out on purpose."""
    script = HERE / "triton_fields.py"
    theirs = json.loads(subprocess.run([peer_python, script], capture_output=True, check=True).stdout)
    ours = runpy.run_path(str(script))["protocol_of"](inference_pb2.DESCRIPTOR)
    assert len(ours) > 200
    assert {name: described for name, described in ours.items() if theirs.get(name) != described} == {}
