"""The streams: health Watch, reflection and streamed inference, as async generators from bodies to answers.

Every request of reflection and of streamed inference gets one answer, in the order of the requests; up to `IN_FLIGHT`
of them are under way at once, and no more are read from the client until it has taken an answer. So a client that does
not read costs as much memory as that and no more. When the server drains, what was read is answered and the stream ends
with UNAVAILABLE, which tells the client to go on elsewhere; one that closed its side ends well. Closing a generator
cancels all that it began.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any, cast

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from penstock.kernels.calls import RESOURCE_EXHAUSTED, UNAVAILABLE, Refused
from penstock.proto import inference_pb2 as pb
from penstock.proto import penstock_pb2 as penstock_pb
from penstock.server.caller import Caller, StreamHandler
from penstock.server.errors import InvalidRequest, status_of
from penstock.server.health import Health, requested_service, told_status
from penstock.server.infer import Inference

IN_FLIGHT = 64
WATCH = "/grpc.health.v1.Health/Watch"
STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
REFLECTIONS = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")

Answer = Callable[[bytes], Coroutine[Any, Any, bytes]]


class Streams:
    """Every streaming RPC. Make and use it inside the event loop.

    Attributes:
        table: full method path to handler.
    """

    def __init__(self, health: Health, inference: Inference, max_message_bytes: int) -> None:
        self._health = health
        self._inference = inference
        self._limit = max_message_bytes
        self._reading: set[asyncio.Task[None]] = set()
        self._closed = False
        self._reflection = _Reflection()
        self.table: dict[str, StreamHandler] = {WATCH: self._watch, STREAM_INFER: self._infer}
        self.table |= {f"/{name}/ServerReflectionInfo": self._reflect for name in REFLECTIONS}

    def close(self) -> None:
        """Read no more from anybody; what was read is answered, and then the streams end."""
        self._closed = True
        for task in self._reading:
            task.cancel()

    async def _watch(self, bodies: AsyncIterator[bytes], _: Caller) -> AsyncGenerator[bytes, None]:
        """Health Watch: the status now and after every change; the stream ends when the server drains."""
        service = requested_service(await anext(bodies, b""))
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            loop.call_soon_threadsafe(changed.set)

        self._health.listen(tell)
        try:
            last = None
            while True:
                changed.clear()
                draining = self._health.draining  # read before the status, so that the last one told is NOT_SERVING
                status = self._health.status(service)
                if status != last:
                    last = status
                    yield told_status(status)
                if draining:
                    return
                await changed.wait()
        finally:
            self._health.forget(tell)

    def _reflect(self, bodies: AsyncIterator[bytes], _: Caller) -> AsyncGenerator[bytes, None]:
        """Reflection: the two versions of the protocol differ in nothing but their names."""
        return self._converse(bodies, self._reflection.answer)

    def _infer(self, bodies: AsyncIterator[bytes], caller: Caller) -> AsyncGenerator[bytes, None]:
        """ModelStreamInfer: a request that fails is told so in its place, and the stream goes on."""
        until = None if caller.remaining_s is None else monotonic() + caller.remaining_s

        async def answer(body: bytes) -> bytes:
            try:
                told = await self._inference.answer(body, None if until is None else until - monotonic())
                return self._sized(_streamed(told))
            except Exception as error:  # noqa: BLE001
                return _failed(body, status_of(error).message, self._limit)

        return self._converse(bodies, answer)

    def _sized(self, message: bytes) -> bytes:
        """The message itself, unless its few bytes more than the answer's are too many."""
        if len(message) > self._limit:
            raise Refused(RESOURCE_EXHAUSTED, f"the answer has {len(message)} bytes, the limit is {self._limit}")
        return message

    async def _converse(self, bodies: AsyncIterator[bytes], answer: Answer) -> AsyncGenerator[bytes, None]:
        """One answer for each request, in their order."""
        slots, begun = asyncio.Semaphore(IN_FLIGHT), asyncio.Queue[asyncio.Task[bytes] | None]()
        reader = asyncio.create_task(_read(bodies, answer, slots, begun))
        reader.add_done_callback(self._reading.discard)
        self._reading.add(reader)
        if self._closed:
            reader.cancel()
        task = None
        try:
            while (task := await begun.get()) is not None:
                yield await task
                slots.release()
            await asyncio.wait((reader,))
        finally:
            await _cancel(reader, task, *_emptied(begun))
        if reader.cancelled():
            raise Refused(UNAVAILABLE, "the server is draining: open the stream again")
        reader.result()


async def _read(
    bodies: AsyncIterator[bytes],
    answer: Answer,
    slots: asyncio.Semaphore,
    begun: asyncio.Queue[asyncio.Task[bytes] | None],
) -> None:
    """Begin every request; None in the end."""
    try:
        while await slots.acquire():  # before reading, so that no request is read and then left
            begun.put_nowait(asyncio.create_task(answer(await anext(bodies))))
    except StopAsyncIteration:
        pass
    finally:
        begun.put_nowait(None)


def _emptied(queue: asyncio.Queue[asyncio.Task[bytes] | None]) -> list[asyncio.Task[bytes] | None]:
    return [queue.get_nowait() for _ in range(queue.qsize())]


async def _cancel(*tasks: asyncio.Task[Any] | None) -> None:
    """End what is still running, and hear of nothing it raised."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def _streamed(answer: bytes) -> bytes:
    """A ModelStreamInferResponse around a ModelInferResponse, without reading it: field 2, its size, its bytes."""
    size, head = len(answer), bytearray(b"\x12")
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return b"".join((head, answer))


def _failed(body: bytes, message: str, limit: int) -> bytes:
    """The error of one request, with the request's id where that can be read and sent."""
    answer = pb.ModelStreamInferResponse(error_message=message, infer_response=pb.ModelInferResponse())
    with suppress(DecodeError):
        answer.infer_response.id = pb.ModelInferRequest.FromString(body).id
    if answer.ByteSize() > limit:
        answer.infer_response.ClearField("id")
    return answer.SerializeToString()


class _Reflection:
    """Answers what this server describes: its own services, health and both versions of reflection."""

    def __init__(self) -> None:
        ours = (pb.DESCRIPTOR, penstock_pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
        names = [service.full_name for file in ours for service in file.services_by_name.values()]
        self._servicer = reflection.ReflectionServicer({*names, *REFLECTIONS}, pool=_pool(ours))

    async def answer(self, body: bytes) -> bytes:
        """One ServerReflectionResponse."""
        try:
            request = reflection_pb2.ServerReflectionRequest.FromString(body)
        except DecodeError as error:
            raise InvalidRequest("not a well-formed ServerReflectionRequest") from error
        (told,) = self._servicer.ServerReflectionInfo(iter((request,)), cast("Any", None))
        return cast("bytes", told.SerializeToString())


def _pool(files: tuple[Any, ...]) -> DescriptorPool:
    """What is described: these files, what they import, and reflection once more under its newer name."""
    pool, added = DescriptorPool(), set[str]()

    def add(file: Any) -> None:
        if file.name not in added:
            added.add(file.name)
            for imported in file.dependencies:
                add(imported)
            pool.AddSerializedFile(file.serialized_pb)

    for file in files:
        add(file)
    older = FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    newer = text_format.MessageToString(older).replace("v1alpha", "v1")
    pool.AddSerializedFile(text_format.Parse(newer, FileDescriptorProto()).SerializeToString())
    return pool
