"""What a run ran on: versions, device, git revision."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "torchdiffeq", "numpy", "scipy", "scikit-learn", "hydra-core", "lightning-fabric")


def environment() -> dict[str, Any]:
    """Versions, device and git revision, as plain values."""
    import torch

    import odenet

    cuda = torch.cuda.is_available()
    return {
        "odenet": odenet.__version__,
        "git_revision": git_revision(Path(odenet.__file__).parent),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }


def git_revision(folder: Path) -> str | None:
    """Commit of the checkout that holds `folder`, "+" behind it if there are uncommitted changes; None outside one."""
    try:
        top = _git(folder, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != folder.resolve().parent:  # a virtual environment inside somebody's checkout
            return None
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
        return _git(folder, "rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
