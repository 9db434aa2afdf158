"""Builds the kernels with the C++ compiler of the machine, once, into the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC")


class BuildError(Exception):
    """Why there are no kernels, as the end of a sentence."""


def built() -> Path:
    """The compiled library; compiles it where this machine and these sources have none yet (some seconds).

    Raises BuildError without a compiler, or where it fails. Written whole or not at all.
    """
    try:
        compiler = find_compiler()
        target = cache_folder() / f"{_key(compiler)}.so"
        if not target.exists():
            _compile(compiler, target)
    except (OSError, RuntimeError, ValueError, subprocess.TimeoutExpired) as error:  # also: no home, an odd $CXX
        raise BuildError(f"the compiler or the folder of compiled kernels cannot be used: {error}") from None
    return target


def find_compiler() -> list[str]:
    """The command that $CXX names, or g++ where there is one: the sources need GCC's vectors. Raises BuildError."""
    if named := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(named[0]) is None:
            raise BuildError(f"$CXX names {named[0]!r}, which is not there")
        return named
    if found := shutil.which("g++"):
        return [found]
    raise BuildError("no g++ was found; $CXX may name another GCC")


def cache_folder() -> Path:
    """Where compiled kernels are kept: $XDG_CACHE_HOME/tokenscale/kernels, or ~/.cache/tokenscale/kernels."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tokenscale" / "kernels"


def openmp_library() -> Path | None:
    """The OpenMP library that torch brings, so that one pool of threads serves both; None where it brings none."""
    return next(iter(sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))), None)


def _key(compiler: list[str]) -> str:
    """Differs where sources, compiler, processor, or torch's OpenMP library do."""
    parts = [p.read_bytes() for p in sorted(SOURCES.iterdir())]
    version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=60, check=False).stdout
    told = (version, repr(FLAGS), _processor(), platform.machine(), str(openmp_library()))
    parts += [t if isinstance(t, bytes) else t.encode() for t in told]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _processor() -> str:
    """What -march=native depends on."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join(sorted(set(kept))) or platform.processor()


def _compile(compiler: list[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        out = Path(folder) / "kernels.so"
        openmp = openmp_library()
        # -fopenmp when linking would bring in a second OpenMP library, with threads of its own.
        linked = [str(openmp), "-lm"] if openmp is not None else ["-fopenmp"]
        objects = [Path(folder) / f"{source.stem}.o" for source in sorted(SOURCES.glob("*.cpp"))]
        for source, made in zip(sorted(SOURCES.glob("*.cpp")), objects, strict=True):
            _run([*compiler, *FLAGS, "-fopenmp", "-c", str(source), "-o", str(made)])
        _run([*compiler, "-shared", *map(str, objects), *linked, "-o", str(out)])
        os.replace(out, target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
        raise BuildError(f"{command[0]} failed: {first.strip()[:300]}")
