"""Everything an operator can set, with its default and bounds: one frozen value.

Read from `penstock serve --config FILE` (YAML with these names) and overridden by the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from penstock.features.definitions import read_yaml
from penstock.server.address import Address
from penstock.server.cache import ALL, CacheSettings, explained
from penstock.server.certificates import Certificates
from penstock.server.errors import BadConfig
from penstock.server.lookups import NearCacheSettings
from penstock.server.sampling import SampleSettings

MIB = 1 << 20
MOST_BATCH_ROWS = 65536
LEAST_URGENT = 19
"""As nice(1) counts."""
LONGEST_S = 1_000_000
"""Of the times of a connection: eleven days, which gRPC can still count in milliseconds."""


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _switch(value: Any) -> Any:
    """What YAML makes of a bare `on` or `off` is a truth value."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _caps(value: Any) -> Any:
    """One cap for every model, or each model's own; numbers are texts, and YAML's bare `off` a truth value."""
    caps = value if isinstance(value, dict) else {ALL: value}
    return {ALL: "auto"} | {name: "off" if cap is False else str(cap) for name, cap in caps.items()}


def _defaults(value: Any) -> Any:
    """A model that is named and nothing more gets what is usual; so does nothing at all."""
    if isinstance(value, dict):
        return {name: {} if settings is None else settings for name, settings in value.items()}
    return {} if value is None else value


class Config(BaseModel):
    """Settings of one server."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    registry: Path = Field(default=Path("penstock-models"), description="folder of published models")
    features: str = Field(default="", description="URL of the feature store; needed by versions that join features")
    grpc: str = Field(default="127.0.0.1:8001", description="HOST:PORT (0 picks a free port) or unix:/path of gRPC")
    metrics: str = Field(default="127.0.0.1:8002", description="HOST:PORT of Prometheus metrics, or off")
    transport: Literal["auto", "native", "grpcio"] = Field(default="auto", description="which transport serves gRPC")
    io_threads: int = Field(default=0, ge=0, le=64, description="of the native transport; 0: 1, or cores/4 over 4")
    allow_remote: bool = Field(default=False, description="allow addresses that other machines can reach")
    tls_certificate: Path | None = Field(default=None, description="PEM chain of the server; makes gRPC speak TLS only")
    tls_key: Path | None = Field(default=None, description="PEM key of that certificate, without a password")
    tls_client_ca: Path | None = Field(default=None, description="PEM; callers must show a certificate signed by it")

    max_batch_rows: int = Field(default=256, ge=1, le=MOST_BATCH_ROWS, description="rows a worker takes at once")
    batch_cap: Annotated[dict[str, str], BeforeValidator(_caps)] = Field(
        default="auto",
        validate_default=True,
        description="rows of a run at most: auto (measured), off or a number; or these by model, * for those not named",
    )
    foresee: bool = Field(default=True, description="refuse at once what could not be answered in time")
    warmup_ms: int = Field(default=300, ge=0, le=60_000, description="for measuring a version's curve; 0: not at all")
    max_queue_rows: int = Field(default=65536, ge=1, description="rows that may wait, for each version")
    max_queue_bytes: int = Field(default=256 * MIB, ge=1, description="request bytes that may wait, for each version")
    max_queue_delay_us: int = Field(default=0, ge=0, le=10_000_000, description="how long a batch waits for company")
    workers: int = Field(default=0, ge=0, le=64, description="threads for each version; 0 chooses by what a run takes")
    worker_nice: str = Field(
        default="auto",
        coerce_numbers_to_str=True,
        description="how much workers yield to others, as nice(1) counts: auto (10 where runs are long) or 0 to 19",
    )
    inline: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = Field(
        default="auto", description="whether I/O threads run models: where that is cheap, always, or never; native"
    )
    forests: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = Field(
        default="auto", description="whether our kernel runs ensembles of trees: where that is faster, always, or never"
    )
    intra_op_threads: int = Field(
        default=1, ge=1, le=256, description="threads of one run, by ONNX Runtime or a forest"
    )

    max_message_bytes: int = Field(default=64 * MIB, ge=1024, le=1 << 30, description="of one request or answer")
    max_in_flight_bytes: int = Field(default=1 << 30, ge=1 << 20, description="of requests and answers held; native")
    max_header_bytes: int = Field(default=16384, ge=1024, le=1 << 20, description="metadata of one call")
    max_streams: int = Field(default=1024, ge=1, le=1 << 30, description="calls in flight on one connection")
    max_connections: int = Field(default=4096, ge=1, le=1 << 30, description="open connections")
    handshake_timeout_s: float = Field(default=10.0, gt=0, le=LONGEST_S, description="for TLS and the HTTP/2 preface")
    header_timeout_s: float = Field(default=10.0, gt=0, le=LONGEST_S, description="for the headers of a call; native")
    body_timeout_s: float = Field(
        default=30.0, gt=0, le=LONGEST_S, description="for a request's body, and for an answer to be read; native"
    )
    idle_timeout_s: float = Field(default=900.0, gt=0, le=LONGEST_S, description="of a connection without calls")
    keepalive_s: float = Field(default=60.0, gt=0, le=LONGEST_S, description="a peer silent for so long is sent a PING")
    keepalive_timeout_s: float = Field(default=20.0, gt=0, le=LONGEST_S, description="for the answer to that PING")
    max_connection_age_s: float = Field(
        default=3600.0, gt=0, le=LONGEST_S, description="then it is told to leave; 10 % more or less, by chance"
    )
    max_connection_age_grace_s: float = Field(default=60.0, gt=0, le=LONGEST_S, description="for its calls to finish")
    max_resets_per_s: int = Field(default=1000, ge=1, le=1 << 20, description="calls cancelled by a connection; native")
    max_pings_per_s: int = Field(default=10, ge=1, le=1 << 20, description="PING frames of a connection; native")
    max_settings_per_s: int = Field(default=10, ge=1, le=1 << 20, description="SETTINGS frames of one; native")
    max_empty_frames_per_s: int = Field(default=100, ge=1, le=1 << 20, description="frames without content; native")
    default_deadline_s: float = Field(default=30.0, gt=0, le=1e6, description="for callers who send no deadline")
    drain_delay_s: float = Field(default=0.0, ge=0, description="between NOT_SERVING and closing the listener")
    drain_grace_s: float = Field(default=10.0, gt=0, description="how long calls in flight may take to finish")

    cache: Annotated[dict[str, CacheSettings], BeforeValidator(_defaults)] = Field(
        default={}, description="answers kept, by model; * for those not named: bytes, ttl_s, joined_ttl_s, shared"
    )
    functions: dict[str, str] = Field(
        default={}, description="Python functions that transforms and views may call, by name: package.module:function"
    )
    feature_timeout_ms: float = Field(default=50.0, gt=0, description="for one look-up of a batch")
    near_cache: NearCacheSettings | None = Field(
        default=None, description="rows kept in this process: bytes, max_age_s; none keeps nothing"
    )
    compute_timeout_ms: float = Field(default=1000.0, gt=0, description="for a look-up that computes what is missing")
    compute_threads: int = Field(default=4, ge=1, le=256, description="functions that compute features at once")
    compute_unknown_s: float = Field(
        default=1.0, ge=0, le=LONGEST_S, description="how long what a function does not know is not asked of it again"
    )
    sample_served: SampleSettings | None = Field(
        default=None, description="a sample of looked-up rows, for penstock features check: path, rate, max_bytes"
    )
    drift_window_s: float = Field(default=60.0, gt=0, description="length of a drift window")
    poll_s: float = Field(default=2.0, gt=0, description="how often the registry is looked at")

    @field_validator("batch_cap")
    @classmethod
    def _known_caps(cls, value: dict[str, str]) -> dict[str, str]:
        for model, cap in value.items():
            if cap not in {"auto", "off"} and not (_is_count(cap) and 1 <= int(cap) <= MOST_BATCH_ROWS):
                of = "" if model == ALL else f"for {model} "
                raise ValueError(
                    f"it is auto, off or a number of rows from 1 to {MOST_BATCH_ROWS}, {of}not {cap[:40]!r}"
                )
        return value

    @field_validator("worker_nice")
    @classmethod
    def _known_niceness(cls, value: str) -> str:
        if value == "auto" or (_is_count(value) and int(value) <= LEAST_URGENT):
            return value
        raise ValueError(f"it is auto or a number from 0 to {LEAST_URGENT}, not {value[:40]!r}")

    @classmethod
    def read(cls, path: Path | None = None, **overrides: Any) -> Config:
        """The settings in a YAML file (or the defaults), overridden by those given that are not None.

        Raises:
            BadConfig: an unreadable file, an unknown name or a value out of bounds, named.
        """
        values: Any = {}
        if path is not None:
            try:
                values = read_yaml(path.read_text("utf-8")) or {}
            except OSError as error:
                raise BadConfig(f"config: {path} cannot be read: {error.strerror}") from error
            except ValueError as error:
                raise BadConfig(f"config: {path} is not YAML: {error}") from error
            if not isinstance(values, dict):
                raise BadConfig(f"config: {path} holds no mapping of settings")
        values |= {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"] if part != "[key]")
            told = first["msg"].removeprefix("Value error, ")
            where = f" of {path}" if path is not None and name not in overrides else ""
            if first["type"] == "extra_forbidden":
                told = "there is no such setting; penstock serve --help and docs/reference.md list them"
            if first["loc"][:1] == ("cache",):
                told = explained(first["type"], of_name=first["loc"][-1] == "[key]") or told
            raise BadConfig(f"setting {name!r}{where}: {told}") from error

    def cap_of(self, model: str) -> str:
        """The `batch_cap` of a model: auto, off or a number."""
        return self.batch_cap.get(model, self.batch_cap[ALL])

    def address(self, name: Literal["grpc", "metrics"]) -> Address | None:
        """Where a listener is to be; None where it is off. Metrics are never on a unix socket.

        Raises:
            BadConfig: not an address, or one that other machines can reach where nobody is asked who calls and
                `allow_remote` is not set.
        """
        value: str = getattr(self, name)
        if value == "off" and name != "grpc":
            return None
        try:
            address = Address.parse(value)
        except BadConfig as error:
            raise BadConfig(f"{name}: {error}") from error
        if address.path and name != "grpc":
            raise BadConfig(f"{name}: {value!r} is not HOST:PORT")
        asked = name == "grpc" and self.tls_client_ca is not None
        if not (address.local or asked or self.allow_remote):
            raise BadConfig(
                f"{name}: {address.host!r} can be reached from other machines and nothing here asks who calls; "
                "say --allow-remote if that is meant"
            )
        return address

    def certificates(self) -> Certificates | None:
        """The files of TLS; None where gRPC is served in the clear. They are not looked at here.

        Raises:
            BadConfig: some are given and others that they need are not.
        """
        if self.tls_certificate is not None and self.tls_key is not None:
            return Certificates(self.tls_certificate, self.tls_key, self.tls_client_ca)
        given = [name for name in ("tls_certificate", "tls_key", "tls_client_ca") if getattr(self, name) is not None]
        if given:
            raise BadConfig(f"{given[0]}: TLS needs both tls_certificate and tls_key")
        return None
