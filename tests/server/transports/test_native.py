"""The native transport's part in Python: what it holds of a call goes with the call."""

from __future__ import annotations

import gc
from urllib.request import urlopen

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

pytest.importorskip("penstock.kernels.http2", reason="this build has no native transport")

SERVICE = "/inference.GRPCInferenceService/"


@pytest.fixture
def counted(registry, graphs, gate, serving, calling):
    """A caller of the native transport, and what its metrics say."""
    graphs.publish(registry, "double", graphs.double())
    addresses = serving(metrics="127.0.0.1:0", transport="native")

    def read(name):
        with urlopen(f"http://{addresses.metrics}/metrics") as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        samples = {sample.name: sample.value for family in families for sample in family.samples}
        return samples[f"penstock_transport_{name}"]

    return calling(addresses), read


@pytest.fixture
def _no_collection():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize("end", ["finished", "failed", "cancelled"])
def test_the_bytes_of_a_call_are_given_back_at_its_end_not_when_garbage_is_collected(counted, gate, eventually, end):
    caller, read = counted
    request = caller.request("double", [[0.0, 0.0]] * 200 if end != "failed" else [[0.0]] * 400)  # worth compressing
    stream = caller.channel.stream_stream(SERVICE + "ModelStreamInfer")
    unary = caller.channel.unary_unary(SERVICE + "ModelInfer")
    body = request.SerializeToString()
    if end == "cancelled":
        gate.shut()
    for _ in range(10):
        calls = [stream(iter([body])), unary.future(body, compression=grpc.Compression.Gzip)]
        if end == "cancelled":
            gate.entered()
            for call in calls:
                call.cancel()
            gate.open()
            gate.shut()
        else:
            list(calls[0])
            calls[1].exception()
    gate.open()
    eventually(lambda: read("bytes") == 0, 5)
    assert read("exchanges_total") == 20


def test_binary_metadata_that_is_not_base64_is_the_callers_fault(registry, serving, http2_client, caplog):
    with http2_client.connect(serving(transport="native").grpc) as peer:
        good = peer.call(SERVICE + "ServerLive", b"", ("a-bin", "/wA"))
        bad = peer.call(SERVICE + "ServerLive", b"", ("a-bin", "A"))
    assert (good.code, bad.code) == (0, 3)
    assert "a-bin" in bad.message
    assert not caplog.records
