"""Both clients against a real gRPC server: what goes over the wire, what comes back, and what failures become."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
import time

import grpc
import numpy as np
import pytest

import penstock
from penstock import errors
from penstock._codec import DATATYPES
from penstock.answers import Duration, ModelState, TensorMetadata
from penstock.client import AsyncClient, Client
from penstock.proto import inference_pb2 as pb


class Blocking:
    """An AsyncClient called like a Client, so that every promise is held by both."""

    def __init__(self, address, **options):
        self.loop = asyncio.new_event_loop()
        self.client = self.loop.run_until_complete(self.make(address, options))

    async def make(self, address, options):
        return await AsyncClient(address, **options).__aenter__()

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.loop.run_until_complete(getattr(self.client, name)(*args, **kwargs))

    def __enter__(self):
        return self

    def __exit__(self, *why):
        self.loop.run_until_complete(self.client.__aexit__(*why))
        self.loop.close()


@pytest.fixture(params=[Client, Blocking], ids=["Client", "AsyncClient"])
def connect(request):
    return request.param


@pytest.fixture
def client(server, connect):
    with connect(server.address, timeout=5) as client:
        yield client


def wire(server):
    """The last request as {name: (datatype, shape, raw)}."""
    request = server.requests[-1]
    pairs = zip(request.inputs, request.raw_input_contents, strict=True)
    return {tensor.name: (tensor.datatype, list(tensor.shape), raw) for tensor, raw in pairs}


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BYTES"])
def test_every_number_type_crosses_the_wire_unchanged(client, server, datatype):
    values = np.array([[0, 1, 1], [1, 0, 1]])
    sent = values.astype(bool) if datatype == "BOOL" else values
    answer = client.predict("echo", {f"in_{datatype}": sent})
    assert wire(server)[f"in_{datatype}"][:2] == (datatype, [2, 3])
    assert np.array_equal(answer[f"out_{datatype}"], values)


def test_text_and_bytes_cross_the_wire_as_bytes(client):
    sent = np.array([["é", b"a\0b", ""]], object)
    answer = client.predict("echo", {"in_BYTES": sent})
    assert answer["out_BYTES"].tolist() == [["é".encode(), b"a\0b", b""]]


def test_a_prediction_is_a_mapping_that_knows_who_answered(client):
    answer = client.predict("echo", {"in_FP32": [[1.0]], "in_INT64": [[2]]}, request_id="r1")
    assert sorted(answer) == ["out_FP32", "out_INT64"]
    assert len(answer) == 2
    assert (answer.model_name, answer.model_version, answer.id) == ("echo", "1", "r1")
    assert answer.parameters == {"rows": 2, "digest": "abc"}


def test_one_array_goes_to_the_matrix_input(client, server):
    answer = client.predict("fraud", np.arange(6).reshape(2, 3))
    assert wire(server).keys() == {"features"}
    assert answer["total"].tolist() == [3, 12]


def test_one_array_for_a_model_of_several_inputs_is_refused_before_it_is_sent(client, server):
    with pytest.raises(errors.InvalidRequest, match="takes several inputs: send a mapping with in_BOOL"):
        client.predict("echo", [[1.0]])
    assert not server.requests


def test_overrides_that_are_no_numbers_are_refused_by_name(client):
    with pytest.raises(errors.InvalidRequest, match="'amount' is FP32 and cannot be sent as <U4"):
        client.predict("fraud", entity_ids=["a"], overrides={"amount": ["much"]})


def test_entity_ids_go_as_bytes_under_the_models_entity_input(client, server):
    client.predict("fraud", entity_ids=["ä", b"b\xff", 17, np.int64(5)])
    raw = b"\2\0\0\0\xc3\xa4\2\0\0\0b\xff\2\0\0\x0017\1\0\0\x005"
    assert wire(server) == {"customer": ("BYTES", [4, 1], raw)}


def test_ids_of_several_keys_go_joined_whether_by_row_or_by_key(client, server):
    raw = b"\3\0\0\0a|7\6\0\0\0b\\|c|8"
    client.predict("fraud", entity_ids=[("a", 7), ("b|c", b"8")])
    assert wire(server) == {"customer": ("BYTES", [2, 1], raw)}
    client.predict("fraud", entity_ids={"merchant": np.array([7, 8]), "customer": ["a", "b|c"]})
    assert wire(server) == {"customer": ("BYTES", [2, 1], raw)}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"customer": ["a"]}, "entity_ids of model 'fraud' has the keys customer; they are customer, merchant"),
        ({"customer": ["a"], "merchant": [1], "card": [2]}, "has the keys customer, merchant, card; they are"),
        ({"customer": ["a", "b"], "merchant": [1]}, "as many values of each key, not 2 of customer, 1 of merchant"),
        ({"customer": ["a"], "merchant": "1"}, "merchant is a sequence: put a single value in a list"),
        ({"customer": ["a"], "merchant": [1.5]}, "text, bytes or an integer, not float"),
        ({"customer": ["a"], "merchant": [""]}, "a part of none"),
    ],
)
def test_ids_by_key_that_cannot_be_meant_are_refused(client, ids, message):
    with pytest.raises(errors.InvalidRequest, match=message):
        client.predict("fraud", entity_ids=ids)


def test_overrides_go_as_float_columns_beside_the_entity_ids(client, server):
    client.predict("fraud", entity_ids=["a", "b"], overrides={"amount": [1, 2.5]})
    assert wire(server)["amount"] == ("FP32", [2, 1], np.array([1, 2.5], np.float32).tobytes())
    assert "customer" in wire(server)


def test_columns_by_name_are_sent_as_floats(client, server):
    client.predict("fraud", {"amount": [1, 2], "age": [3.0, 4.0]})
    assert [wire(server)[name][0] for name in ("amount", "age")] == ["FP32", "FP32"]


@pytest.mark.parametrize(
    ("model", "ids", "message"),
    [
        ("fraud", "alice", "put a single id in a list"),
        ("fraud", [17.5], "str, bytes or int"),
        ("fraud", [None], "str, bytes or int"),
        ("echo", ["a"], "takes no entity ids"),
    ],
)
def test_entity_ids_that_cannot_be_meant_are_refused(client, model, ids, message):
    with pytest.raises(errors.InvalidRequest, match=message):
        client.predict(model, entity_ids=ids)


def test_version_outputs_id_and_parameters_reach_the_server(client, server):
    options = {"timing": True, "n": 3, "who": "me", "share": 0.5}
    client.predict("echo", {"in_FP32": [[1]]}, version="1", outputs=["out_FP32"], request_id="x", parameters=options)
    request = server.requests[-1]
    assert (request.model_version, request.id, [o.name for o in request.outputs]) == ("1", "x", ["out_FP32"])
    kinds = {key: value.WhichOneof("parameter_choice") for key, value in request.parameters.items()}
    assert kinds == {"timing": "bool_param", "n": "int64_param", "who": "string_param", "share": "double_param"}


def test_a_request_is_the_message_that_protobuf_itself_would_write(client, server):
    for request_id, value, outputs in (("a", 1.0, []), ("", 2.0, ["out_FP32"]), ("c", 300.0, [])):
        values = np.full((1, 50), value, np.float32)
        client.predict("echo", {"in_FP32": values}, request_id=request_id, outputs=outputs)
        expected = pb.ModelInferRequest(model_name="echo", id=request_id, raw_input_contents=[values.tobytes()])
        expected.inputs.add(name="in_FP32", datatype="FP32", shape=[1, 50])
        for name in outputs:
            expected.outputs.add(name=name)
        assert server.requests[-1] == expected


def test_metadata_is_asked_once_and_again_after_a_refusal(client, server):
    for _ in range(3):
        client.predict("fraud", [[1, 2, 3]])
    assert server.metadata_calls == 1
    for status in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
        server.failures = [status]
        with pytest.raises(errors.RpcError):
            client.predict("fraud", [[1, 2, 3]])
        calls = server.metadata_calls
        client.predict("fraud", [[1, 2, 3]])
        assert server.metadata_calls == calls + 1


def test_metadata_is_asked_again_after_a_refusal_on_this_side(client, server):
    """What does not fit the model as it was may fit the model as it is."""
    client.predict("fraud", [[1, 2, 3]])
    calls = server.metadata_calls
    with pytest.raises(errors.InvalidRequest, match="put a single id"):
        client.predict("fraud", entity_ids="17")
    client.predict("fraud", [[1, 2, 3]])
    assert server.metadata_calls == calls + 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("INVALID_ARGUMENT", errors.InvalidRequest),
        ("NOT_FOUND", errors.NotFound),
        ("DEADLINE_EXCEEDED", errors.DeadlineExceeded),
        ("RESOURCE_EXHAUSTED", errors.ResourceExhausted),
        ("PERMISSION_DENIED", errors.AccessDenied),
        ("UNIMPLEMENTED", errors.Unimplemented),
        ("CANCELLED", errors.Cancelled),
        ("INTERNAL", errors.Internal),
        ("ALREADY_EXISTS", errors.RpcError),
    ],
)
def test_every_status_has_its_error_with_code_and_details(client, server, status, error):
    server.failures = [grpc.StatusCode[status]]
    with pytest.raises(error) as caught:
        client.predict("fraud", [[1, 2, 3]])
    assert type(caught.value) is error
    assert isinstance(caught.value, penstock.PenstockError)
    assert caught.value.code == status
    assert caught.value.details.startswith("refused")
    assert str(caught.value).startswith(f"{status}: refused")


def test_unavailable_is_tried_up_to_three_times(client, server):
    server.failures = [grpc.StatusCode.UNAVAILABLE] * 2
    assert client.predict("fraud", [[1, 2, 3]])["total"].tolist() == [6]
    server.failures = [grpc.StatusCode.UNAVAILABLE] * 3
    with pytest.raises(errors.Unavailable, match="refused"):
        client.predict("fraud", [[1, 2, 3]])
    assert len(server.requests) == 6


def test_a_server_that_is_not_there_is_unavailable_by_its_address(connect):
    with connect("127.0.0.1:1", timeout=5) as client:
        assert client.live() is False
        assert client.ready() is False
        with pytest.raises(errors.Unavailable, match=r"127\.0\.0\.1:1"):
            client.predict("fraud", [[1]])


def test_a_server_that_does_not_answer_in_time_is_a_deadline(client, server):
    server.go.clear()
    try:
        with pytest.raises(errors.DeadlineExceeded, match=server.address):
            client.predict("fraud", [[1, 2, 3]], timeout=0.2)
    finally:
        server.go.set()


def test_the_timeout_holds_for_what_is_asked_about_the_model_too(connect):
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, connect(f"127.0.0.1:{silent.getsockname()[1]}", timeout=20) as client:
        begun = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded):
            client.predict("fraud", [[1, 2, 3]], timeout=0.2)
        assert time.monotonic() - begun < 10


def test_an_answer_whose_contents_do_not_fit_is_a_protocol_error(client, server):
    server.answer = pb.ModelInferResponse(model_name="echo")
    server.answer.outputs.add(name="score", datatype="FP32", shape=[2])
    with pytest.raises(errors.ProtocolError, match="1 outputs came with 0 raw contents"):
        client.predict("echo", {"in_FP32": [[1]]})
    server.answer.raw_output_contents.append(b"1234567")
    with pytest.raises(errors.ProtocolError, match=r"output 'score' \[2\] FP32 came with 7 bytes"):
        client.predict("echo", {"in_FP32": [[1]]})


def test_readiness_and_life_are_told_apart(client):
    assert client.live() is True
    assert client.ready() is True
    assert client.ready("echo") is True
    assert client.ready("fraud") is False
    with pytest.raises(errors.NotFound, match="unknown model: 'nothing'"):
        client.ready("nothing")


def test_metadata_config_and_index_come_as_frozen_values(client):
    assert client.server_metadata().extensions == ("statistics",)
    assert client.models() == (ModelState("echo", "1", "READY", ""),)
    metadata = client.metadata("fraud")
    assert metadata.inputs[0] == TensorMetadata("features", "FP32", (-1, 3))
    config = client.config("fraud")
    assert (config.entity, config.vector, config.columns) == ("customer", "features", ("amount", "count", "age"))
    assert config.entity_keys == ("customer", "merchant")
    assert config.outputs == (TensorMetadata("label", "BYTES", (1,)),)
    with pytest.raises(AttributeError):
        metadata.name = "other"


def test_statistics_tell_phases_and_batches(client):
    (stats,) = client.statistics("echo")
    assert stats.phases["queue"] == Duration(6, 900)
    assert stats.batches == {3: 2}
    assert (stats.inference_count, stats.execution_count, stats.last_inference_ms) == (6, 2, 5)


def test_drift_tells_each_feature_and_a_missing_score(client):
    (drift,) = client.drift("fraud")
    assert (drift.model_name, drift.rows, drift.complete, drift.score) == ("fraud", 100, True, None)
    assert drift.features[0].ks == 0.5
    assert drift.features[0].rows == 90
    assert client.drift("fraud", current=True)[0].complete is False


def test_messages_above_grpcs_own_four_mebibytes_pass(client):
    values = np.zeros((1, 2_000_000), np.float32)
    assert client.predict("echo", {"in_FP32": values})["out_FP32"].shape == values.shape


def test_one_client_serves_many_threads(server):
    with Client(server.address) as client:
        results = {}

        def work(k):
            results[k] = [client.predict("fraud", [[k, i, 0]])["total"][0] for i in range(20)]

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert results == {k: [k + i for i in range(20)] for k in range(8)}


async def test_one_async_client_serves_many_tasks(server):
    async with AsyncClient(server.address) as client:
        answers = await asyncio.gather(*(client.predict("fraud", [[k, 0, 0]]) for k in range(100)))
    assert [answer["total"][0] for answer in answers] == list(range(100))


def test_both_clients_offer_the_same_calls_with_the_same_arguments():
    def faces(cls):
        public = {name for name in vars(cls) if not name.startswith("_")}
        return {name: list(inspect.signature(getattr(cls, name)).parameters) for name in public}

    assert faces(Client) == faces(AsyncClient)


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1", "127.0.0.1:", ":8001", "localhost:http"])
def test_an_address_without_a_usable_port_is_refused_at_once(address):
    with pytest.raises(errors.InvalidRequest, match="is not HOST:PORT"):
        Client(address)
