"""Where figures come from: the machine, the versions, the date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers

COMPILERS = ("c++", "g++", "clang++")


def machine() -> dict[str, Any]:
    """Processor, cores, memory, versions, the C++ compiler if there is one, and the date (UTC)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "gpu": gpu,
        "system": platform.system(),
        "compiler": compiler(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenscale": importlib.metadata.version("tokenscale"),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def compiler() -> str | None:
    """The first line of the C++ compiler's `--version`; None where none is found ($CXX is asked first)."""
    for name in (os.environ.get("CXX"), *COMPILERS):
        path = shutil.which(name) if name else None
        if path:
            ran = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            if ran.returncode == 0:
                return (ran.stdout.splitlines() or [path])[0]
    return None
