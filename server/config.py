"""Everything an operator can set, with its default and bounds: one frozen value.

Read from `penstock serve --config FILE` (YAML with these names) and overridden by the command line.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from penstock.server.errors import BadConfig

MIB = 1 << 20


class Config(BaseModel):
    """Settings of one server."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    registry: Path = Field(default=Path("penstock-models"), description="folder of published models")
    features: str = Field(default="", description="URL of the feature store; needed by versions that join features")
    grpc: str = Field(default="127.0.0.1:8001", description="HOST:PORT of gRPC; port 0 picks a free one")
    metrics: str = Field(default="127.0.0.1:8002", description="HOST:PORT of Prometheus metrics, or off")
    transport: Literal["auto", "grpcio"] = Field(default="auto", description="which transport serves gRPC")
    allow_remote: bool = Field(default=False, description="allow addresses that other machines can reach")

    max_batch_rows: int = Field(default=256, ge=1, le=65536, description="rows a worker takes at once")
    max_queue_rows: int = Field(default=65536, ge=1, description="rows that may wait, for each version")
    max_queue_bytes: int = Field(default=256 * MIB, ge=1, description="request bytes that may wait, for each version")
    max_queue_delay_us: int = Field(default=0, ge=0, le=10_000_000, description="how long a batch waits for company")
    workers: int = Field(default=0, ge=0, le=64, description="threads for each version; 0: 1, or 2 with features")
    intra_op_threads: int = Field(default=1, ge=1, le=256, description="ONNX Runtime threads of one run")

    max_message_bytes: int = Field(default=64 * MIB, ge=1024, le=1 << 30, description="of one request or answer")
    max_streams: int = Field(default=1024, ge=1, description="calls in flight on one connection")
    max_connections: int = Field(default=4096, ge=1, description="open connections")
    default_deadline_s: float = Field(default=30.0, gt=0, le=1e6, description="for callers who send no deadline")
    drain_delay_s: float = Field(default=0.0, ge=0, description="between NOT_SERVING and closing the listener")
    drain_grace_s: float = Field(default=10.0, gt=0, description="how long calls in flight may take to finish")

    feature_timeout_ms: float = Field(default=50.0, gt=0, description="for one look-up of a batch")
    drift_window_s: float = Field(default=60.0, gt=0, description="length of a drift window")
    poll_s: float = Field(default=2.0, gt=0, description="how often the registry is looked at")

    @classmethod
    def read(cls, path: Path | None = None, **overrides: Any) -> Config:
        """The settings in a YAML file (or the defaults), overridden by those given that are not None.

        Raises:
            BadConfig: an unreadable file, an unknown name or a value out of bounds, named.
        """
        values: Any = {}
        if path is not None:
            try:
                values = yaml.safe_load(path.read_text("utf-8")) or {}
            except OSError as error:
                raise BadConfig(f"config: {path} cannot be read: {error.strerror}") from error
            except (UnicodeDecodeError, yaml.YAMLError) as error:
                raise BadConfig(f"config: {path} is not YAML: {' '.join(str(error).split())}") from error
            if not isinstance(values, dict):
                raise BadConfig(f"config: {path} holds no mapping of settings")
        values |= {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name, told = ".".join(map(str, first["loc"])), first["msg"]
            where = f" of {path}" if path is not None and name not in overrides else ""
            if first["type"] == "extra_forbidden":
                told = "there is no such setting; penstock serve --help and docs/reference.md list them"
            raise BadConfig(f"setting {name!r}{where}: {told}") from error

    def address(self, name: Literal["grpc", "metrics"]) -> tuple[str, int] | None:
        """Host and port of a listener; None where it is off.

        Raises:
            BadConfig: not HOST:PORT, or an address other machines can reach without `allow_remote`.
        """
        value: str = getattr(self, name)
        if value == "off" and name != "grpc":
            return None
        host, separator, port = value.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not separator or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise BadConfig(f"{name}: {value!r} is not HOST:PORT")
        if not self.allow_remote and not _is_loopback(host):
            raise BadConfig(
                f"{name}: {host!r} can be reached from other machines and nothing here asks who calls; "
                "say --allow-remote if that is meant"
            )
        return host, int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
