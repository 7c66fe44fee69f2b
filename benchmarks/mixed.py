"""The tail of a cheap model, whose batches run inline, beside a model of some milliseconds in lanes on the same port.

One caller of each, by h2load; the cheap one alone and beside the dear one, in turn. What is compared is its p99.

    python -m penstock.benchmarks.mixed [--rounds 5] [--seconds 3] [--json]

Ends with 1 if it is more than twice what it is alone.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from penstock.benchmarks.generators import LoadFailed
from penstock.benchmarks.seeded import METHOD, publish, request
from penstock.benchmarks.sides import machine, penstock
from penstock.commands._console import console, errors, print_json
from penstock.converters import publish_onnx
from penstock.errors import PenstockError
from penstock.registry import Registry

TAIL = 2.0
"""How many times its p99 alone the cheap model's p99 beside the dear one may be."""
LAYERS, WIDTH = 400, 512
"""Of the dear model: 4 ms a run on the machine that this was written on."""


def publish_dear(folder: Path) -> None:
    """A model of some milliseconds a row: layers of one matrix."""
    from onnx import TensorProto, helper

    weights = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32) / 16
    names = ["x", *(f"h{i}" for i in range(1, LAYERS)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], "w"], [f"m{i}"]) for i in range(LAYERS)]
    nodes += [helper.make_node("Tanh", [f"m{i}"], [names[i + 1]]) for i in range(LAYERS)]
    nodes.sort(key=lambda node: (int((node.input[0] if node.op_type == "Tanh" else node.output[0])[1:]), node.op_type))
    given, made = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH])] for name in "xy")
    tensor = helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel())
    graph = helper.make_graph(nodes, "dear", given, made, [tensor])
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


def measured(folder: Path, rounds: int, seconds: float) -> list[tuple[float, float]]:
    """The tails of every round."""
    seeded = publish(folder, ("plain",))
    publish_dear(folder)
    with penstock("mixed", folder, "native", "") as server:
        return tails(server.address, seeded["plain"].bodies()[0], folder, rounds, seconds)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each side, in turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="Length of one run.")] = 3.0,
    json: Annotated[bool, typer.Option(help="Figures as JSON.")] = False,
) -> None:
    """Measure a cheap model's tail beside a dear one; ends with 1 if it is more than twice its tail alone."""
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
            taken = measured(Path(name), rounds, seconds)
    except PenstockError as error:
        errors.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    ratio = statistics.median(beside / alone for alone, beside in taken)
    if json:
        print_json({"machine": machine(), "p99_us": taken, "ratio": ratio, "at_most": TAIL})
    else:
        for alone, beside in taken:
            console.print(f"p99 alone {alone:,.0f} us, beside the dear model {beside:,.0f} us", highlight=False)
        console.print(f"beside / alone: {ratio:.3g}, at most {TAIL:g}: {'held' if ratio <= TAIL else 'MISSED'}")
    if ratio > TAIL:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
