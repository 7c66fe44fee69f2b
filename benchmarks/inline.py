"""Inline runs against the lane: the same native transport, the same model, with the switch on auto and off.

Both servers run as processes of their own over one registry and are driven in turn by h2load, A B A B …; see `lines.py`
for how ratios are taken. The model is the logistic regression; one body is repeated, which costs such a model nothing
less. Answers are held against the model's source by value beforehand. Last, the tail of one caller of that model is
taken alone and beside a caller of a model of some milliseconds on the same port, which workers run.

    python -m penstock.benchmarks.inline [--rounds 5] [--seconds 3] [--pin] [--json]

Ends with 1 if a line is missed.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from penstock.benchmarks.generators import H2load, LoadFailed
from penstock.benchmarks.lines import Line, Outcome
from penstock.benchmarks.seeded import METHOD, check_values, publish, request, vector_bodies
from penstock.benchmarks.sides import Side, counter, machine, penstock
from penstock.benchmarks.transports import Scenario, missed, report
from penstock.client import Client
from penstock.commands._console import console, errors, print_json
from penstock.converters import publish_onnx
from penstock.errors import PenstockError
from penstock.registry import Registry

ONE = (Line("inline", "p50_us", against="lane", at_most=0.75),)
EIGHT = (Line("inline", "rate", against="lane", at_least=1.5),)
MANY = (Line("inline", "cpu_us", at_most=3),)
TAIL = 2.0
"""How many times its p99 alone the cheap model's p99 beside the dear one may be."""
NICE = 15
"""Of workers: else the scheduler lets the dear model's hold up the threads that read, on two cores."""
LAYERS, WIDTH = 60, 512
"""Of the dear model."""


def publish_dear(folder: Path) -> None:
    """A model of some milliseconds a row: layers of one matrix."""
    from onnx import TensorProto, helper

    weights = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32) / 16
    names = ["x", *(f"h{i}" for i in range(1, LAYERS)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], "w"], [f"m{i}"]) for i in range(LAYERS)]
    nodes += [helper.make_node("Tanh", [f"m{i}"], [names[i + 1]]) for i in range(LAYERS)]
    nodes.sort(key=lambda node: (int((node.input[0] if node.op_type == "Tanh" else node.output[0])[1:]), node.op_type))
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH])] for name in "xy"]
    tensor = helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel())
    graph = helper.make_graph(nodes, "dear", *ends, [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (folder / "dear.onnx").write_bytes(model.SerializeToString())
    publish_onnx(folder / "dear.onnx", "dear", Registry(folder / "registry"))


def p99_us(address: str, body: Path, seconds: float) -> float:
    """The 99th percentile of one caller's latencies."""
    log = body.with_suffix(".log")
    log.unlink(missing_ok=True)
    with _h2load(address, body, seconds, [f"--log-file={log}"]) as running:
        printed = running.communicate()[0]
    rows = [line.split("\t") for line in log.read_text().splitlines()]
    if not rows or any(status != "200" for _, status, _ in rows):
        raise LoadFailed(f"h2load: not every request was answered: {printed[-500:]}")
    return float(np.percentile([int(latency) for _, _, latency in rows], 99))


def _h2load(address: str, body: Path, seconds: float, more: list[str]) -> subprocess.Popen[str]:
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    sizes = ["-c", "1", "-m", "1", "-t", "1", "-D", str(max(1, round(seconds)))]
    command = ["h2load", *sizes, *headers, "-d", str(body), *more, f"http://{address}{METHOD}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def tails(address: str, cheap: bytes, folder: Path, rounds: int, seconds: float) -> list[tuple[float, float]]:
    """The cheap model's p99 in microseconds, alone and beside the dear one, of every round."""
    dear = request("dear", "x", "FP32", [1, WIDTH], np.ones(WIDTH, np.float32).tobytes())
    files = folder / "cheap.body", folder / "dear.body"
    for file, body in zip(files, (cheap, dear), strict=True):
        file.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
    taken = []
    for i in range(rounds):
        errors.print(f"mixed load: round {i + 1} of {rounds}", highlight=False)
        alone = p99_us(address, files[0], seconds)
        with _h2load(address, files[1], seconds + 2, []) as load:
            taken.append((alone, p99_us(address, files[0], seconds)))
            load.terminate()
            load.communicate()
    return taken


def measured(
    folder: Path, rounds: int, seconds: float, *, pin: bool
) -> tuple[list[Outcome], list[tuple[float, float]]]:
    """Every scenario, in turn, and the tails of the mixed load."""
    server_cores, load_cores = ("0", "1") if pin else ("", "")
    seeded = publish(folder)
    publish_dear(folder)
    with ExitStack() as stack:
        sides = []
        for name, switch in (("inline", "auto"), ("lane", "off")):
            more = f"inline: '{switch}'\nworker_nice: {NICE}\n"
            server = stack.enter_context(penstock(name, folder, "native", server_cores, more))
            client = stack.enter_context(Client(server.address))
            check_values(client, seeded)
            bodies = vector_bodies("plain", client.config("plain").vector, seeded.rows)
            sides.append(Side(name, server, bodies, counter(client, "plain")))
        asked = [
            Scenario("one caller", sides, H2load(1), 1, ONE),
            Scenario("8 callers", sides, H2load(1, connections=8, log=False), 8, EIGHT),
            Scenario("4 x 64", sides, H2load(1, connections=4, log=False), 256, MANY),
        ]
        outcomes = [scenario.outcome(rounds, seconds, load_cores) for scenario in asked]
        return outcomes, tails(sides[0].server.address, sides[0].bodies[0], folder, rounds, seconds)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each side, in turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one run.")] = 3.0,
    pin: Annotated[bool, typer.Option(help="Servers on core 0, load on core 1.")] = False,
    json: Annotated[bool, typer.Option(help="Figures as JSON.")] = False,
) -> None:
    """Measure inline runs against the lane; ends with 1 if a line is missed."""
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
            outcomes, taken = measured(Path(name), rounds, seconds, pin=pin)
    except PenstockError as error:
        errors.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    lines = missed(outcomes)
    ratio = statistics.median(beside / alone for alone, beside in taken)
    told = f"mixed load: p99 beside the dear model / alone: {ratio:.3g}, at most {TAIL:g}"
    if ratio > TAIL:
        lines.append(f"{told}: MISSED")
    if json:
        scenarios = [outcome.as_json() for outcome in outcomes]
        print_json({"machine": machine(), "pinned": pin, "scenarios": scenarios, "p99_us": taken})
    else:
        report(outcomes)
        console.print(told, highlight=False)
        console.print(f"p99 alone and beside, us: {taken}", highlight=False)
    if lines:
        errors.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
