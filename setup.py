"""Build of Penstock: which folder is which package, which kernels exist, and how stubs are generated.

Folders stand at the top level of the repository and are imported as ``penstock.<folder>``. Everything else about
the project is in pyproject.toml. Environment switches, for developers only:

- ``PENSTOCK_DEBUG=1``      bounds checks, ``-O0 -g`` and annotated HTML in build/cython;
- ``PENSTOCK_KERNELS=wire,lanes``  only these kernels are built, each with its parts;
- ``PENSTOCK_SANITIZE=address,undefined``  kernels compiled under those sanitizers (or ``thread``);
- ``PENSTOCK_WITHOUT_NATIVE=1``  the native transport is left out, as where its libraries are missing.

``CC``, ``CFLAGS`` and ``LDFLAGS`` are honoured.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# setuptools brings its own distutils and puts it in place once it is imported: this stays below it.
from distutils.ccompiler import new_compiler  # isort: skip
from distutils.sysconfig import customize_compiler  # isort: skip

ROOT = Path(__file__).parent.resolve()
ROOMS = ("proto", "kernels", "registry", "features", "monitoring", "converters", "training", "server", "benchmarks")
PACKAGES = {"penstock": "penstock", "penstock.bench": "penstock/bench", "penstock.commands": "penstock/commands"}
PACKAGES |= {f"penstock.{room}": room for room in ROOMS}
PACKAGES |= {"penstock.server.transports": "server/transports", "penstock.features.offline": "features/offline"}
PACKAGES |= {"penstock.examples": "examples", "penstock.examples.fraud": "examples/fraud"}
PACKAGES |= {"penstock.kernels.reference": "kernels/reference"}


class Kernel(NamedTuple):
    """One kernel: the system libraries it links against, whether a build may go on without it, and its parts.

    A part is a module of its own, ``<kernel>_<part>``, built with its kernel and never imported from outside kernels.
    """

    libraries: tuple[str, ...] = ()
    optional: bool = False
    parts: tuple[str, ...] = ()


# From the lowest layer to the highest, as drawn in kernels/_wire.pxd, kernels/_http2.pxd and kernels/_load.pxd.
WIRE = ("requests", "plan", "values", "match", "answers", "faults", "blocks")
HTTP2 = ("answers", "calls", "streams", "requests", "sockets", "connections", "mailboxes", "loops")
LOAD = ("calls", "answers", "wires", "requests", "threads")
KERNELS = {
    "wire": Kernel(parts=WIRE),
    "cache": Kernel(("pthread",), parts=("keys",)),
    "calls": Kernel(("pthread",)),
    "ledger": Kernel(("pthread",)),
    "batches": Kernel(),
    "engines": Kernel(("pthread",)),
    "lanes": Kernel(("pthread",)),
    "rows": Kernel(),
    "hashes": Kernel(),
    "ids": Kernel(),
    "joins": Kernel(),
    "ort": Kernel(("dl",)),
    "transforms": Kernel(("m",)),
    "drift": Kernel(("m",)),
    "costs": Kernel(),
    "windows": Kernel(("m", "pthread")),
    "forest": Kernel(("m", "pthread"), parts=("layout", "masks", "crew")),
    "routes": Kernel(),
    "exchanges": Kernel(("pthread",)),
    "tls": Kernel(("ssl", "crypto"), optional=True),
    "http2": Kernel(("nghttp2", "pthread"), optional=True, parts=HTTP2),
    "load": Kernel(("nghttp2",), optional=True, parts=LOAD),
}

# The optional kernels are the native transport. Each program must compile and link, or all of them are left out.
NEEDED = {
    "nghttp2 1.43 or newer": (
        "nghttp2",
        """#include <nghttp2/nghttp2.h>
        #if NGHTTP2_VERSION_NUM < 0x012b00
        #error too old
        #endif
        int main(void) { return nghttp2_version(0) == 0; }""",
    ),
    "OpenSSL 1.1.1 or newer": (
        "ssl",
        """#include <openssl/ssl.h>
        #if OPENSSL_VERSION_NUMBER < 0x10101000L
        #error too old
        #endif
        int main(void) { return SSL_CTX_set_num_tickets(0, 0) == 0; }""",
    ),
}
# What newer nghttp2 have, and distributions put into older ones: a macro tells the kernel that it is there.
OPTIONS = {
    "PENSTOCK_NGHTTP2_RESET_LIMIT": "nghttp2_option_set_stream_reset_rate_limit(0, 0, 0)",
    "PENSTOCK_NGHTTP2_MAX_CONTINUATIONS": "nghttp2_option_set_max_continuations(0, 0)",
}
PACKAGES_TO_INSTALL = "libnghttp2-dev libssl-dev (Debian, Ubuntu) or libnghttp2-devel openssl-devel (Fedora)"

DEBUG = os.environ.get("PENSTOCK_DEBUG") == "1"
SANITIZE = os.environ.get("PENSTOCK_SANITIZE", "")
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "embedsignature": False,
    "autotestdict": False,
}


def package_tree() -> Path:
    """Links that give Cython and mypy the tree as it is imported: build/tree/penstock/<folder>."""
    tree = ROOT / "build" / "tree"
    for package, folder in sorted(PACKAGES.items()):
        link = tree.joinpath(*package.split("."))
        if package == "penstock":
            link.mkdir(parents=True, exist_ok=True)
            for source in (ROOT / folder).iterdir():
                relink(link / source.name, source)
        elif (ROOT / folder).is_dir() and len(package.split(".")) == 2:
            relink(link, ROOT / folder)
    return tree


def relink(link: Path, target: Path) -> None:
    """Make `link` point at `target`, whatever was there before."""
    if link.is_symlink() and link.readlink() == target:
        return
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def flags() -> tuple[list[str], list[str]]:
    """Compiler and linker flags of this build."""
    compile_args = ["-O0", "-g"] if DEBUG else ["-O3"]
    compile_args += ["-Wno-unused-function", "-Wno-unreachable-code"]
    compile_args += ["-ffp-contract=off"]  # a product and a sum round twice, as numpy's do, on every processor
    link_args: list[str] = []
    if SANITIZE:
        compile_args += ["-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}"]
        link_args += [f"-fsanitize={SANITIZE}"]
    return compile_args, link_args


@cache
def links(program: str, library: str) -> bool:
    """Whether the build's compiler makes a program of this C text with the library."""
    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(program)
        # An undeclared function is only a warning in older compilers, and then missing when linked.
        command = [*compiler.compiler, str(source), "-o", f"{folder}/probe", f"-l{library}", *compiler.linker_exe[1:]]
        return not subprocess.run(command, capture_output=True, check=False).returncode


def left_out() -> str:
    """Why the optional kernels are not built; empty where they are."""
    if os.environ.get("PENSTOCK_WITHOUT_NATIVE") == "1":
        return "as PENSTOCK_WITHOUT_NATIVE=1 asks for"
    missing = [name for name, (library, program) in NEEDED.items() if not links(program, library)]
    return f"no {' and no '.join(missing)} to build with; install {PACKAGES_TO_INSTALL}" if missing else ""


def chosen() -> dict[str, Kernel]:
    """The kernels of this build."""
    wanted = os.environ.get("PENSTOCK_KERNELS", ",".join(KERNELS)).split(",")
    table = {name: kernel for name, kernel in KERNELS.items() if name in wanted}
    if any(kernel.optional for kernel in table.values()) and (why := left_out()):
        print(f"penstock: built without the native transport: {why}", flush=True)
        table = {name: kernel for name, kernel in table.items() if not kernel.optional}
    return table


def macros(kernel: Kernel) -> list[tuple[str, str | None]]:
    """What the library of a kernel has beyond what every version of it has."""
    if "nghttp2" not in kernel.libraries:
        return []
    program = "#include <nghttp2/nghttp2.h>\nint main(void) {{ {}; return 0; }}"
    return [(macro, "1") for macro, call in OPTIONS.items() if links(program.format(call), "nghttp2")]


def extensions() -> list[Extension]:
    """The kernels, compiled from Cython."""
    from Cython.Build import cythonize  # only a build needs Cython

    compile_args, link_args = flags()
    table = [
        Extension(
            f"penstock.kernels.{module}",
            [f"kernels/{module}.pyx"],
            include_dirs=["kernels"],
            depends=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("kernels/*.h")),
            libraries=list(kernel.libraries),
            define_macros=macros(kernel),
            extra_compile_args=compile_args,
            extra_link_args=link_args,
        )
        for name, kernel in chosen().items()
        for module in (name, *(f"{name}_{part}" for part in kernel.parts))
    ]
    built: list[Extension] = cythonize(
        table,
        include_path=[str(package_tree())],
        compiler_directives=DIRECTIVES,
        annotate=DEBUG,
        nthreads=0,
        build_dir="build/cython",
    )
    return built


def generate_stubs() -> None:
    """Python, gRPC and typing stubs of every .proto file, written beside it."""
    sources = sorted((ROOT / "proto").glob("*.proto"))
    outputs = [source.with_name(f"{source.stem}_pb2.py") for source in sources]
    if all(o.exists() and o.stat().st_mtime >= s.stat().st_mtime for s, o in zip(sources, outputs, strict=True)):
        return
    generated = ROOT / "build" / "generated"
    generated.mkdir(parents=True, exist_ok=True)
    bin_folder = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": bin_folder + os.pathsep + os.environ.get("PATH", "")}
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-Ipenstock/proto={ROOT / 'proto'}"]
    command += [f"--{kind}_out={generated}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    command += [f"penstock/proto/{source.name}" for source in sources]
    subprocess.run(command, check=True, env=environment)
    for made in (generated / "penstock" / "proto").iterdir():
        made.replace(ROOT / "proto" / made.name)


class BuildPy(build_py):
    """Generates the protobuf stubs before packages are collected."""

    def run(self) -> None:
        generate_stubs()
        super().run()


class BuildExt(build_ext):
    """Cythonizes only when extensions are really built, so that reading metadata needs no Cython."""

    def finalize_options(self) -> None:
        self.distribution.ext_modules = extensions()
        super().finalize_options()

    def run(self) -> None:
        generate_stubs()
        super().run()


setup(
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "penstock": ["py.typed"],
        "penstock.proto": ["*.proto", "*.pyi"],
        "penstock.kernels": ["*.pyi", "*.pxd"],
        "penstock.benchmarks": ["*.c", "*.cc", "*.h"],
        "penstock.examples.fraud": ["views.yaml"],
    },
    ext_modules=[Extension("penstock.kernels.wire", ["kernels/wire.pyx"])],
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    zip_safe=False,
)
