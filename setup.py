"""Build of Penstock: which folder is which package, which kernels exist, and how stubs are generated.

Folders stand at the top level of the repository and are imported as ``penstock.<folder>``. Everything else about
the project is in pyproject.toml. Environment switches, for developers only:

- ``PENSTOCK_DEBUG=1``      bounds checks, ``-O0 -g`` and annotated HTML in build/cython;
- ``PENSTOCK_KERNELS=wire,lanes``  only these kernels are built;
- ``PENSTOCK_SANITIZE=address,undefined``  kernels compiled under those sanitizers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
ROOMS = ("proto", "kernels", "registry", "features", "monitoring", "converters", "training", "server", "benchmarks")
PACKAGES = {"penstock": "penstock", "penstock.commands": "penstock/commands"}
PACKAGES |= {f"penstock.{room}": room for room in ROOMS}
PACKAGES |= {"penstock.server.transports": "server/transports", "penstock.examples": "examples"}
PACKAGES |= {"penstock.examples.fraud": "examples/fraud", "penstock.kernels.reference": "kernels/reference"}

# Each kernel and the system libraries it links against.
KERNELS: dict[str, tuple[str, ...]] = {
    "wire": (),
    "lanes": ("pthread",),
    "rows": (),
    "transforms": ("m",),
    "drift": ("m",),
}

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
    link_args: list[str] = []
    if SANITIZE:
        compile_args += ["-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}"]
        link_args += [f"-fsanitize={SANITIZE}"]
    return compile_args, link_args


def extensions() -> list[Extension]:
    """The kernels, compiled from Cython."""
    from Cython.Build import cythonize  # only a build needs Cython

    compile_args, link_args = flags()
    table = [
        Extension(
            f"penstock.kernels.{name}",
            [f"kernels/{name}.pyx"],
            libraries=list(libraries),
            extra_compile_args=compile_args,
            extra_link_args=link_args,
        )
        for name, libraries in KERNELS.items()
        if name in os.environ.get("PENSTOCK_KERNELS", ",".join(KERNELS)).split(",")
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
        "penstock.examples.fraud": ["views.yaml"],
    },
    ext_modules=[Extension("penstock.kernels.wire", ["kernels/wire.pyx"])],
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    zip_safe=False,
)
