"""What Triton's own Python client makes of a Penstock server.

Run by a Python of its own that has `tritonclient[grpc]`: `python triton_peer.py HOST:PORT MODEL [MODEL ...]`. Each
MODEL is an identity model as in identity.py: inputs in_<datatype>, outputs out_<datatype>, `[n, k]`. One line is
printed for each check, and the exit status is 1 if any failed. It knows nothing of Penstock but the address.
"""
# ruff: noqa: PT017 - pytest is not there to help

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

SHAPES = ((1, 1), (2, 3), (7, 30))
# Smallest, largest and odd values; each tensor is filled from its list in turn.
VALUES: dict[str, np.ndarray] = {
    "BOOL": np.array([True, False]),
    **{f"UINT{b}": np.array([0, 1, 2**b - 1], f"u{b // 8}") for b in (8, 16, 32, 64)},
    **{f"INT{b}": np.array([-(2 ** (b - 1)), -1, 0, 2 ** (b - 1) - 1], f"i{b // 8}") for b in (8, 16, 32, 64)},
    "FP16": np.array([0.1, -65504, np.inf, np.nan, -0.0, 6e-8], np.float16),
    "BF16": np.array([0.1, -3e38, np.inf, np.nan, -0.0, 1e-40], ml_dtypes.bfloat16),
    "FP32": np.array([0.1, -3e38, np.inf, np.nan, -0.0, 1e-45], np.float32),
    "FP64": np.array([0.1, -1e308, np.inf, np.nan, -0.0, 5e-324], np.float64),
    "BYTES": np.array([b"", "päck".encode(), b"a\0b", b"x" * 300], np.object_),
}

Metadata = Any
Feeds = dict[str, np.ndarray]


def feeds_of(metadata: Metadata, shape: tuple[int, ...]) -> Feeds:
    return {tensor.name: np.resize(VALUES[tensor.datatype], shape) for tensor in metadata.inputs}


def inputs_of(metadata: Metadata, feeds: Feeds) -> list[triton.InferInput]:
    datatypes = {tensor.name: tensor.datatype for tensor in metadata.inputs}
    inputs = []
    for name, array in feeds.items():
        tensor = triton.InferInput(name, array.shape, datatypes[name])
        inputs.append(tensor.set_data_from_numpy(array))
    return inputs


def same(result: triton.InferResult, feeds: Feeds) -> None:
    for name, sent in feeds.items():
        got = result.as_numpy(name.replace("in_", "out_"))
        assert got is not None, f"{name}: no answer"
        assert got.shape == sent.shape, f"{name}: sent {sent.shape}, got {got.shape}"
        equal = got.tolist() == sent.tolist() if sent.dtype == object else got.tobytes() == sent.tobytes()
        assert equal, f"{name}: sent {sent.tolist()}, got {got.tolist()}"


def status_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except InferenceServerException as error:
        assert error.message(), "an error without a message"
        return str(error.status())
    return "StatusCode.OK"


def expect(call: Callable[[], Any], status: str) -> None:
    got = status_of(call)
    assert got == f"StatusCode.{status}", f"expected {status}, got {got}"


def check_server(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live(), "not live"
    assert client.is_server_ready(), "not ready"
    metadata = client.get_server_metadata()
    assert metadata.name, "no name"
    assert metadata.version, "no version"
    assert "statistics" in metadata.extensions, f"extensions {list(metadata.extensions)}"


def check_unknown_model(client: triton.InferenceServerClient) -> None:
    tensor = triton.InferInput("x", [1, 1], "FP32").set_data_from_numpy(np.zeros((1, 1), np.float32))
    expect(lambda: client.infer("no-such-model", [tensor]), "NOT_FOUND")
    expect(lambda: client.is_model_ready("no-such-model"), "NOT_FOUND")
    expect(lambda: client.get_model_metadata("no-such-model"), "NOT_FOUND")
    expect(lambda: client.get_model_config("no-such-model"), "NOT_FOUND")
    expect(lambda: client.get_inference_statistics("no-such-model"), "NOT_FOUND")


def check_shared_memory(client: triton.InferenceServerClient) -> None:
    expect(lambda: client.register_system_shared_memory("r", "/r", 64), "UNIMPLEMENTED")
    expect(client.get_system_shared_memory_status, "UNIMPLEMENTED")


def check_metadata(client: triton.InferenceServerClient, model: str) -> None:
    metadata = client.get_model_metadata(model)
    assert client.is_model_ready(model), "not ready"
    assert metadata.name == model, metadata.name
    assert metadata.versions, "no versions"
    assert all(client.is_model_ready(model, version) for version in metadata.versions), "a version is not ready"
    for tensor in (*metadata.inputs, *metadata.outputs):
        assert tensor.name.endswith(f"_{tensor.datatype}"), f"{tensor.name} is {tensor.datatype}"
        assert list(tensor.shape) == [-1, -1], f"{tensor.name} {list(tensor.shape)}"


def check_config(client: triton.InferenceServerClient, model: str) -> None:
    metadata, config = client.get_model_metadata(model), client.get_model_config(model).config
    assert config.name == model, config.name
    skipped = 1 if config.max_batch_size > 0 else 0
    for described, configured in ((metadata.inputs, config.input), (metadata.outputs, config.output)):
        assert [t.name for t in described] == [t.name for t in configured], "names differ from the metadata"
        for tensor, other in zip(described, configured, strict=True):
            assert list(tensor.shape)[skipped:] == list(other.dims), f"{tensor.name}: dims {list(other.dims)}"
            kind = type(config).DESCRIPTOR.fields_by_name["input"].message_type.fields_by_name["data_type"].enum_type
            name = kind.values_by_number[other.data_type].name.removeprefix("TYPE_").replace("STRING", "BYTES")
            assert name == tensor.datatype, f"{tensor.name} is {name}"
    as_json = client.get_model_config(model, as_json=True)
    assert as_json["config"]["name"] == model, "the JSON form differs"


def check_index(client: triton.InferenceServerClient, model: str) -> None:
    states = {(entry.name, entry.version): entry.state for entry in client.get_model_repository_index().models}
    ready = [version for (name, version), state in states.items() if name == model and state == "READY"]
    assert ready, f"no version is READY in {states}"


def check_values(client: triton.InferenceServerClient, model: str) -> None:
    metadata = client.get_model_metadata(model)
    for shape in SHAPES:
        feeds = feeds_of(metadata, shape)
        result = client.infer(model, inputs_of(metadata, feeds), request_id=f"peer-{shape}")
        same(result, feeds)
        answer = result.get_response()
        assert answer.id == f"peer-{shape}", f"id {answer.id!r}"
        assert answer.model_name == model, answer.model_name
        assert answer.model_version in metadata.versions, answer.model_version


def check_version(client: triton.InferenceServerClient, model: str) -> None:
    metadata = client.get_model_metadata(model)
    inputs = inputs_of(metadata, feeds_of(metadata, (1, 2)))
    result = client.infer(model, inputs, model_version=metadata.versions[0])
    assert result.get_response().model_version == metadata.versions[0], "another version answered"
    expect(lambda: client.infer(model, inputs, model_version="987654"), "NOT_FOUND")


def check_outputs(client: triton.InferenceServerClient, model: str) -> None:
    metadata = client.get_model_metadata(model)
    feeds = feeds_of(metadata, (2, 3))
    wanted = metadata.outputs[-1].name
    result = client.infer(model, inputs_of(metadata, feeds), outputs=[triton.InferRequestedOutput(wanted)])
    names = [tensor.name for tensor in result.get_response().outputs]
    assert names == [wanted], f"asked for {wanted}, got {names}"
    unknown = [triton.InferRequestedOutput("no-such-output")]
    expect(lambda: client.infer(model, inputs_of(metadata, feeds), outputs=unknown), "INVALID_ARGUMENT")


def check_refusals(client: triton.InferenceServerClient, model: str) -> None:
    metadata = client.get_model_metadata(model)
    good = feeds_of(metadata, (2, 3))
    first = next(iter(good))

    def send(feeds: Feeds) -> None:
        expect(lambda: client.infer(model, inputs_of(metadata, feeds)), "INVALID_ARGUMENT")

    send(good | {first: np.resize(good[first], (6,))})  # a dimension too few
    send(good | {first: np.resize(good[first], (1, 2, 3))})  # one too many
    if len(good) > 1:
        send(good | {first: np.resize(good[first], (5, 3))})  # more rows than the others
        send({name: array for name, array in good.items() if name != first})  # one input too few
    wrong = triton.InferInput(first, [2, 3], "FP64")
    wrong.set_data_from_numpy(np.zeros((2, 3), np.float64))
    others = inputs_of(metadata, {name: array for name, array in good.items() if name != first})
    expect(lambda: client.infer(model, [wrong, *others]), "INVALID_ARGUMENT")
    same(client.infer(model, inputs_of(metadata, good)), good)  # and none of it did harm


def check_statistics(client: triton.InferenceServerClient, model: str) -> None:
    def read() -> Any:
        return {s.version: s for s in client.get_inference_statistics(model).model_stats}

    metadata = client.get_model_metadata(model)
    before = read()
    version = client.infer(model, inputs_of(metadata, feeds_of(metadata, (4, 2)))).get_response().model_version
    after = read()[version]
    old = before[version]
    assert after.name == model, after.name
    assert after.inference_stats.success.count == old.inference_stats.success.count + 1, "success was not counted"
    assert after.inference_stats.success.ns > old.inference_stats.success.ns, "no time went by"
    assert after.execution_count == old.execution_count + 1, "the batch was not counted"
    assert after.inference_count > old.inference_count, "no inference was counted"
    assert after.last_inference > 0, "no time of last inference"
    assert model in {s.name for s in client.get_inference_statistics().model_stats}, "not among all models"


async def check_asyncio(address: str, model: str) -> None:
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_live(), "not live"
        metadata = await client.get_model_metadata(model)
        feeds = [feeds_of(metadata, (n, 2)) for n in range(1, 17)]
        results = await asyncio.gather(*(client.infer(model, inputs_of(metadata, f)) for f in feeds))
        for result, sent in zip(results, feeds, strict=True):
            same(result, sent)
        try:
            await client.infer("no-such-model", inputs_of(metadata, feeds[0]))
        except InferenceServerException as error:
            assert str(error.status()) == "StatusCode.NOT_FOUND", error.status()
        else:
            raise AssertionError("an unknown model answered")


def checks(address: str, models: list[str]) -> list[tuple[str, Callable[[triton.InferenceServerClient], None]]]:
    listed: list[tuple[str, Callable[[triton.InferenceServerClient], None]]] = [
        ("server", check_server),
        ("unknown model", check_unknown_model),
        ("shared memory", check_shared_memory),
    ]
    by_model = (check_metadata, check_config, check_index, check_values, check_version, check_outputs, check_refusals)
    for model in models:
        for check in (*by_model, check_statistics):
            name = f"{model}: {check.__name__.removeprefix('check_')}"
            listed.append((name, lambda client, check=check, model=model: check(client, model)))
        listed.append((f"{model}: asyncio", lambda _, model=model: asyncio.run(check_asyncio(address, model))))
    return listed


def main(address: str, *models: str) -> int:
    failed = 0
    with triton.InferenceServerClient(address) as client:
        for name, check in checks(address, list(models)):
            try:
                check(client)
                print(f"ok      {name}", flush=True)
            except (AssertionError, InferenceServerException, KeyError) as error:
                failed += 1
                print(f"FAILED  {name}: {error}", flush=True)
                traceback.print_exc()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
