"""What Penstock costs on top of gRPC itself, and what entity keys cost on top of vectors.

Two servers run as processes of their own: a bare grpc.aio echo (`echo.py`) and `penstock serve` on the grpcio transport
with a seeded logistic regression of 30 features. The same generator drives them in turn, A B A B …, one row a request,
at 64 callers and at 1. Compared is the server's CPU time for each request, which is steadier than requests per second;
the figure is the median of the ratios of neighbouring runs, since machines drift within seconds. Entity keys are
compared with vectors in the same way, on one server and one model; Redis' own CPU time is given apart.

Every answer is checked: the first ones by value, all by the server's own count of successes.

    python -m penstock.benchmarks.overhead [--rounds 5] [--seconds 3] [--pin] [--json | --markdown]
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from penstock.benchmarks.generators import Generator, LoadFailed, best
from penstock.benchmarks.processes import Server, cpu_s, redis_of
from penstock.client import Client
from penstock.commands._console import console, errors, print_json, print_table
from penstock.errors import PenstockError
from penstock.proto import inference_pb2 as pb

METHOD = "/inference.GRPCInferenceService/ModelInfer"
FEATURES, POOL, SEED = 30, 64, 7
LIMITS = {"penstock / echo": 1.35, "entity keys / vectors": 1.5}
COLUMNS = [f"f{i}" for i in range(FEATURES)]
ENTITIES = [f"customer-{i}" for i in range(POOL)]


@dataclass(frozen=True)
class Run:
    """One run: requests per second, µs of CPU for each request, median latency in µs."""

    rate: float
    cpu_us: float
    p50_us: float
    redis_us: float = 0.0


@dataclass(frozen=True)
class Side:
    """What is driven: a server and the bodies to send it."""

    name: str
    server: Server
    bodies: Sequence[bytes]
    counted: Callable[[], int] | None = None  # successes the server has counted so far
    redis: Sequence[int] = ()  # process ids


@dataclass(frozen=True)
class Comparison:
    """Runs of two sides in turn; `ratio` is the median of second / first CPU per request over neighbouring runs."""

    name: str
    callers: int
    sides: tuple[str, str]
    runs: tuple[tuple[Run, Run], ...]

    @property
    def ratios(self) -> list[float]:
        return [second.cpu_us / first.cpu_us for first, second in self.runs]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def side(self, i: int) -> Run:
        """Medians over the runs of one side."""
        runs = [asdict(pair[i]) for pair in self.runs]
        return Run(**{name: statistics.median(run[name] for run in runs) for name in runs[0]})

    def as_json(self) -> dict[str, Any]:
        sides = {name: asdict(self.side(i)) for i, name in enumerate(self.sides)}
        return {"name": self.name, "callers": self.callers, **sides, "ratio": self.ratio, "ratios": self.ratios}


def compare(
    name: str, first: Side, second: Side, generator: Generator, *, callers: int, rounds: int, seconds: float, cores: str
) -> Comparison:
    """Drive both sides in turn, `rounds` times `seconds` each, after a short run that finds how many requests it is."""

    def drive(side: Side, requests: int) -> Run:
        return measure(side, generator, callers, requests, cores)

    sizes = {side.name: int(drive(side, 400 + 50 * callers).rate * seconds) for side in (first, second)}
    runs = []
    for i in range(rounds):
        errors.print(f"{name}, {callers} callers: round {i + 1} of {rounds}", highlight=False)
        runs.append((drive(first, sizes[first.name]), drive(second, sizes[second.name])))
    return Comparison(name, callers, (first.name, second.name), tuple(runs))


def measure(side: Side, generator: Generator, callers: int, requests: int, cores: str) -> Run:
    """One run; raises LoadFailed if the server did not count as many successes as there were requests."""
    successes = side.counted() if side.counted else 0
    cpu, redis = side.server.cpu_s(), cpu_s(side.redis)
    load = generator(side.server.address, METHOD, side.bodies, callers=callers, requests=requests, cores=cores)
    cpu, redis = side.server.cpu_s() - cpu, cpu_s(side.redis) - redis
    if side.counted and (counted := side.counted() - successes) < load.requests:
        raise LoadFailed(f"{side.name}: of {load.requests} requests only {counted} were answered OK")
    return Run(load.rate, cpu / load.requests * 1e6, load.p50_us, redis / load.requests * 1e6)


# ---- The model, and what is asked of it ------------------------------------------------------------------------------


def publish(folder: Path) -> tuple[Any, np.ndarray[Any, np.dtype[np.float32]]]:
    """Publish the model twice, as `plain` and, joined with a view, as `joined`; gives it and the pool of rows."""
    import pandas as pd
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression

    from penstock.converters import convert
    from penstock.registry import Registry

    x, y = make_classification(4000, FEATURES, n_informative=12, random_state=SEED)
    sample = pd.DataFrame(x.astype(np.float32), columns=COLUMNS)
    model = LogisticRegression(max_iter=1000).fit(sample, y)
    registry, view = Registry(folder / "registry"), fill_store(folder, sample)
    convert(model, "plain", sample, labels=y, registry=registry)
    convert(model, "joined", sample, labels=y, registry=registry, views=(view,), entity="customer")
    return model, sample.to_numpy(np.float32)[:POOL]


def fill_store(folder: Path, sample: Any) -> Any:
    """Put the pool's rows into a Redis of our own; gives their view."""
    from penstock.features.opening import open_store
    from penstock.features.schema import Column, FeatureView

    view = FeatureView(
        name="numbers", entity="customer", columns=tuple(Column(name=name, dtype="float32") for name in COLUMNS)
    )
    store = open_store(store_url(folder))
    store.apply(view)
    values = {name: sample[name].to_numpy(np.float32)[:POOL] for name in COLUMNS}
    store.put(view, [entity.encode() for entity in ENTITIES], values)
    store.close()
    return view


def store_url(folder: Path) -> str:
    """Where the benchmark's features are kept: a Redis that lives while anybody uses it."""
    return f"embedded://{folder / 'store'}"


def vector_bodies(model: str, tensor: str, rows: np.ndarray[Any, np.dtype[np.float32]]) -> list[bytes]:
    """One request for each row, as a matrix of one row."""
    return [request(model, tensor, "FP32", [1, FEATURES], row.tobytes()) for row in rows]


def entity_bodies(model: str, tensor: str) -> list[bytes]:
    """One request for each entity."""
    raws = (entity.encode() for entity in ENTITIES)
    return [request(model, tensor, "BYTES", [1, 1], len(raw).to_bytes(4, "little") + raw) for raw in raws]


def request(model: str, tensor: str, datatype: str, shape: list[int], raw: bytes) -> bytes:
    message = pb.ModelInferRequest(model_name=model, raw_input_contents=[raw])
    message.inputs.add(name=tensor, datatype=datatype, shape=shape)
    return message.SerializeToString()


def check_values(client: Client, source: Any, rows: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """Both models give the source's probabilities for every row of the pool, by vector and by entity."""
    import pandas as pd

    expected = source.predict_proba(pd.DataFrame(rows, columns=COLUMNS))
    for answer in (
        client.predict("plain", rows),
        client.predict("joined", rows),
        client.predict("joined", entity_ids=ENTITIES),
    ):
        got = next(array for array in answer.values() if array.shape == expected.shape and array.dtype.kind == "f")
        np.testing.assert_allclose(got, expected, atol=1e-5)


# ---- The command -----------------------------------------------------------------------------------------------------


@contextmanager
def servers(folder: Path, cores: str) -> Iterator[tuple[Server, Server]]:
    """The echo and Penstock, started and ended."""
    python = sys.executable
    command = [python, "-c", "from penstock.cli import main; main()", "serve", "--registry", str(folder / "registry")]
    listen = ["--grpc", "127.0.0.1:0", "--http", "off", "--metrics", "off", "--transport", "grpcio"]
    words = [*command, *listen, "--features", store_url(folder)]
    with ExitStack() as stack:
        echo = Server("echo", [python, "-m", "penstock.benchmarks.echo"], folder / "echo.json", cores=cores)
        penstock = Server("penstock", words, folder / "penstock.json", ["--ready-file"], cores)
        yield stack.enter_context(echo), stack.enter_context(penstock)


def measured(folder: Path, rounds: int, seconds: float, *, pin: bool) -> list[Comparison]:
    """Every comparison, in turn."""
    server_cores, load_cores = ("0", "1") if pin else ("", "")
    options: dict[str, Any] = {"rounds": rounds, "seconds": seconds, "cores": load_cores}
    source, rows = publish(folder)
    with servers(folder, server_cores) as (echo, penstock), Client(penstock.address) as client:
        check_values(client, source, rows)
        plain = vector_bodies("plain", client.config("plain").vector, rows)
        joined, redis = client.config("joined"), redis_of(folder / "store")
        first = Side("echo", echo, plain)
        second = Side("penstock", penstock, plain, counter(client, "plain"))
        vectors = Side("vectors", penstock, vector_bodies("joined", joined.vector, rows), counter(client, "joined"))
        keys = Side("entity keys", penstock, entity_bodies("joined", joined.entity), vectors.counted, redis)
        return [
            *(compare("penstock / echo", first, second, best(16), callers=callers, **options) for callers in (64, 1)),
            compare("entity keys / vectors", vectors, keys, best(POOL), callers=64, **options),
        ]


def counter(client: Client, model: str) -> Callable[[], int]:
    """Reads how many requests of a model the server answered OK."""
    return lambda: sum(entry.phases["success"].count for entry in client.statistics(model))


def report(comparisons: Sequence[Comparison], generator: str) -> None:
    """The table, and each ratio against its limit."""
    rows = []
    for comparison in comparisons:
        for i, name in enumerate(comparison.sides):
            run = comparison.side(i)
            redis = f"{run.redis_us:.1f}" if run.redis_us else ""
            ratio = f"{comparison.ratio:.2f}" if i else ""
            figures = (f"{run.rate:,.0f}", f"{run.cpu_us:.1f}", redis, f"{run.p50_us:.0f}", ratio)
            rows.append((comparison.callers, name, *figures))
    headers = ("callers", "server", "req/s", "CPU µs/req", "Redis µs/req", "p50 µs", "CPU ratio")
    print_table(f"Overhead (load: {generator})", headers, rows, numeric=(headers[0], *headers[2:]))
    for comparison in comparisons:
        spread = f"{min(comparison.ratios):.2f} to {max(comparison.ratios):.2f}"
        limit = LIMITS[comparison.name] if comparison.callers > 1 else None
        verdict = "" if limit is None else f", limit {limit}: {'held' if comparison.ratio <= limit else 'EXCEEDED'}"
        console.print(
            f"{comparison.name}, {comparison.callers} callers: {comparison.ratio:.2f} ({spread}){verdict}",
            highlight=False,
        )


def machine() -> str:
    """What this is measured on, in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    return f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, grpcio {version('grpcio')}"


def print_markdown(comparisons: Sequence[Comparison], generator: str, *, pin: bool) -> None:
    """The table of the README."""
    where = "server on one core, load on the other" if pin else "server and load on the same cores"
    print(f"Median of {len(comparisons[0].runs)} rounds, {generator}, {where}; {machine()}.\n")
    print("| what | in flight | CPU µs a call | against | CPU µs a call | ratio (range) |\n|---|---|---|---|---|---|")
    for comparison in comparisons:
        first, second = comparison.sides
        before, after = comparison.side(0).cpu_us, comparison.side(1).cpu_us
        spread = f"{min(comparison.ratios):.2f} to {max(comparison.ratios):.2f}"
        cells = (second, comparison.callers, f"{after:.0f}", first, f"{before:.0f}")
        print("|", *(f"{cell} |" for cell in cells), f"**{comparison.ratio:.2f}** ({spread}) |")


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each side, in turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one run.")] = 3.0,
    pin: Annotated[bool, typer.Option(help="Servers on core 0, load on core 1.")] = False,
    json: Annotated[bool, typer.Option(help="Figures as JSON.")] = False,
    markdown: Annotated[bool, typer.Option(help="The table of the README.")] = False,
) -> None:
    """Measure CPU for each request against a bare grpc.aio echo, and entity keys against vectors."""
    generator = best(1).name
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
            comparisons = measured(Path(name), rounds, seconds, pin=pin)
    except PenstockError as error:
        errors.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    if json:
        print_json({"generator": generator, "pinned": pin, "comparisons": [c.as_json() for c in comparisons]})
    elif markdown:
        print_markdown(comparisons, generator, pin=pin)
    else:
        report(comparisons, generator)


if __name__ == "__main__":
    typer.run(main)
