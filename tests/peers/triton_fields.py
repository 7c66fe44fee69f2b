"""Prints, as JSON, every field, enum value and method of the protocol as tritonclient has it; run by its own Python."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto


def fields_of(message: Any, prefix: str) -> dict[str, list[Any]]:
    """Fields of a message and of those nested in it: name to number, type, label and name of the type."""
    name = f"{prefix}.{message.name}"
    found = {f"{name}.{f.name}": [f.number, f.type, f.label, f.type_name] for f in message.field}
    for enum in message.enum_type:
        found |= values_of(enum, name)
    for nested in message.nested_type:
        found |= fields_of(nested, name)
    return found


def values_of(enum: Any, prefix: str) -> dict[str, list[Any]]:
    """Values of an enum: name to number."""
    return {f"{prefix}.{enum.name}.{value.name}": [value.number] for value in enum.value}


def protocol_of(*files: Any) -> dict[str, list[Any]]:
    """Everything in files of package `inference`."""
    found: dict[str, list[Any]] = {}
    for file in files:
        described = FileDescriptorProto()
        file.CopyToProto(described)
        for message in described.message_type:
            found |= fields_of(message, ".inference")
        for enum in described.enum_type:
            found |= values_of(enum, ".inference")
        for service in described.service:
            methods = service.method
            kinds = {m.name: [m.input_type, m.output_type, m.client_streaming, m.server_streaming] for m in methods}
            found |= {f".inference.{service.name}/{name}": kind for name, kind in kinds.items()}
    return found


def main() -> None:
    from tritonclient.grpc import model_config_pb2, service_pb2

    print(json.dumps(protocol_of(service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)))


if __name__ == "__main__":
    main()
