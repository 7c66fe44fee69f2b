"""The servers that Penstock is measured against, each as a process of its own over the same ONNX files.

What a rival needs is got when it is started for the first time: an environment under build/peers, or a compiler. Where
that fails, `start` raises and says what is missing; the benchmark then goes on without it and tells so.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import distribution, version
from pathlib import Path

import grpc

from penstock.benchmarks.peers import HOME, NotInstalled, environment
from penstock.benchmarks.processes import Server, build, compiled, free_port
from penstock.benchmarks.seeded import Seeded
from penstock.benchmarks.sides import penstock
from penstock.proto import inference_pb2 as pb
from penstock.proto.inference_pb2_grpc import GRPCInferenceServiceStub

HERE = Path(__file__).resolve().parent
ONNX_RUNTIME = f"onnxruntime=={version('onnxruntime')}"  # the same for all
MLSERVER, UVLOOP, PYTRITON = "1.7.1", "0.21.0", "0.7.0"  # uvloop 0.22 and later crash MLServer
VERSIONS = {"mlserver": {"MLServer": MLSERVER}, "triton": {"nvidia-pytriton": PYTRITON}}
ALL = ("plain", "trees", "mlp")
Models = Mapping[str, Seeded]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Rival:
    """A kind of server.

    Attributes:
        title: in tables.
        start: makes it ready to be entered, for models in a folder, on these cores; says what takes long.
        models: which it is measured with.
        echo: it answers with the request.
    """

    title: str
    start: Callable[[Path, Models, str, Say], Server]
    models: Collection[str] = ALL
    echo: bool = False


# ---- Those without a model -------------------------------------------------------------------------------------------


def _nghttp2(folder: Path, models: Models, cores: str, say: Say) -> Server:  # noqa: ARG001
    return Server("nghttp2 echo", [str(compiled("nghttp2_echo", folder))], folder / "nghttp2.json", cores=cores)


def _aio(folder: Path, models: Models, cores: str, say: Say) -> Server:  # noqa: ARG001
    command = [sys.executable, "-m", "penstock.benchmarks.echo"]
    return Server("grpc.aio echo", command, folder / "aio.json", cores=cores)


# ---- Those with one --------------------------------------------------------------------------------------------------


def _penstock(transport: str, folder: Path, models: Models, cores: str, say: Say) -> Server:  # noqa: ARG001
    return penstock(transport, folder, transport, cores)


def _mlserver(folder: Path, models: Models, cores: str, say: Say) -> Server:
    python = environment("mlserver", (f"mlserver=={MLSERVER}", f"uvloop=={UVLOOP}", ONNX_RUNTIME), say)
    port = free_port()
    words = [str(python), str(HERE / "rival_mlserver.py"), str(port), *(f"{m.name}={m.onnx}" for m in models.values())]
    return _asked("MLServer", words, folder / "mlserver", port, models, cores)


def _triton(folder: Path, models: Models, cores: str, say: Say) -> Server:
    python = environment("triton", (f"nvidia-pytriton=={PYTRITON}", ONNX_RUNTIME), say)
    packages = next((python.parents[1] / "lib").glob("python3*")) / "site-packages"
    home, repository = packages / "pytriton" / "tritonserver", folder / "triton" / "models"
    for model in models.values():
        _triton_model(repository / model.name, model)
    port = free_port()
    words = [str(home / "bin" / "tritonserver"), f"--model-repository={repository}", "--disable-auto-complete-config"]
    words += [f"--backend-directory={_triton_backends(home, folder / 'triton')}", "--allow-http=false"]
    words += ["--allow-metrics=false", "--grpc-address=127.0.0.1", f"--grpc-port={port}"]
    libraries = f"{packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    variables = {
        "LD_LIBRARY_PATH": libraries,
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }  # so the stub finds both
    return _asked("Triton", words, folder / "triton" / "triton", port, models, cores, variables)


def _triton_backends(home: Path, folder: Path) -> Path:
    """A folder of backends with the stub for this Python where Triton looks for it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise NotInstalled(f"nvidia-pytriton has no Python backend for Python {version}")
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True, exist_ok=True)
    for file in (*(home / "backends" / "python").iterdir(), stub):
        (backend / file.name).unlink(missing_ok=True)
        (backend / file.name).symlink_to(file)
    return backend.parent


def _triton_model(folder: Path, model: Seeded) -> None:
    """A model of Triton's repository: dynamic batching without delay, one instance on the CPU."""
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / "model.py").write_bytes((HERE / "rival_triton.py").read_bytes())
    (folder / "1" / "model.onnx").write_bytes(model.onnx.read_bytes())
    parts = [f'name: "{model.name}" backend: "python" max_batch_size: 256 dynamic_batching {{}}']
    parts += ["instance_group [{ kind: KIND_CPU count: 1 }]"]
    parts += [
        f'input [{{ name: "{tensor.name}" data_type: TYPE_{tensor.datatype} dims: {list(tensor.shape[1:])} }}]'
        for tensor in model.signature.inputs
    ]
    for tensor in model.signature.outputs:
        # Triton knows no output of nothing but the batch: it is told as one column.
        dims = f"dims: {list(tensor.shape[1:])}" if tensor.shape[1:] else "dims: [1] reshape: { shape: [] }"
        parts.append(f'output [{{ name: "{tensor.name}" data_type: TYPE_{tensor.datatype} {dims} }}]')
    (folder / "config.pbtxt").write_text("\n".join(parts))


def _cpp(threads: int, folder: Path, models: Models, cores: str, say: Say) -> Server:
    model = models["plain"]
    library = next(Path(str(distribution("onnxruntime").locate_file("onnxruntime/capi"))).glob("libonnxruntime.so*"))
    outputs = [tensor.name for tensor in model.signature.outputs]
    words = [
        str(compiled_grpc(say=say)),
        str(threads),
        str(library),
        model.name,
        str(model.onnx),
        model.tensor,
        *outputs,
    ]
    return Server("C++", words, folder / f"cpp{threads}.json", cores=cores)


def compiled_grpc(folder: Path = HOME / "cpp", say: Say = lambda _: None) -> Path:
    """cpp_grpc.cc with the protocol's stubs, compiled unless it was since they changed; raises NotBuilt."""
    source, proto, program = HERE / "cpp_grpc.cc", HERE.parent / "proto", folder / "cpp_grpc"
    changed = max(path.stat().st_mtime for path in (source, proto / "inference.proto"))
    if program.exists() and program.stat().st_mtime > changed:
        return program
    say("compiling cpp_grpc.cc (half a minute)")
    folder.mkdir(parents=True, exist_ok=True)
    draft, packages = program.with_suffix(".new"), "libgrpc++-dev protobuf-compiler-grpc g++"
    plugin = ["--plugin=protoc-gen-grpc=/usr/bin/grpc_cpp_plugin", f"--grpc_out={folder}", f"--cpp_out={folder}"]
    protoc = ["/usr/bin/protoc", f"-I{proto}", *plugin, "inference.proto"]
    build(protoc, "cpp_grpc.cc", f"protoc (apt-get install {packages})", packages)
    stubs = [str(folder / "inference.pb.cc"), str(folder / "inference.grpc.pb.cc")]
    command = ["g++", "-O2", "-Wall", "-Wextra", "-std=c++17", f"-I{folder}", "-o", str(draft), str(source), *stubs]
    libraries = ["-Wl,--copy-dt-needed-entries", "-lgrpc++", "-lgrpc", "-lgpr", "-lprotobuf", "-ldl", "-lpthread"]
    build([*command, *libraries], "cpp_grpc.cc", f"a C++ compiler (apt-get install {packages})", packages)
    draft.rename(program)
    return program


def _asked(
    name: str,
    words: list[str],
    files: Path,
    port: int,
    models: Models,
    cores: str,
    variables: Mapping[str, str] | None = None,
) -> Server:
    """A server that is ready once it says so of every model."""
    address = f"127.0.0.1:{port}"
    is_ready = partial(ready, address, tuple(models))
    return Server(
        name, words, files.with_suffix(".json"), cores=cores, address=address, is_ready=is_ready, environment=variables
    )


def ready(address: str, models: Collection[str]) -> bool:
    """Whether a server of the protocol answers for all these models."""
    with grpc.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        try:
            return all(stub.ModelReady(pb.ModelReadyRequest(name=name), timeout=2).ready for name in models)
        except grpc.RpcError:
            return False


RIVALS = {
    "native": Rival("Penstock, native", partial(_penstock, "native"), (*ALL, "joined")),
    "grpcio": Rival("Penstock, grpcio", partial(_penstock, "grpcio"), (*ALL, "joined")),
    "cpp": Rival("C++ gRPC, a thread a core", partial(_cpp, os.cpu_count() or 1), ("plain",)),
    "cpp1": Rival("C++ gRPC, one thread", partial(_cpp, 1), ("plain",)),
    "triton": Rival("Triton (Python backend)", _triton),
    "mlserver": Rival("MLServer", _mlserver),
    "aio": Rival("grpc.aio echo, no model", _aio, ("plain",), echo=True),
    "nghttp2": Rival("nghttp2 echo, no model", _nghttp2, ("plain",), echo=True),
}
"""Every side by its short name; the first is the one that the others are compared with."""
