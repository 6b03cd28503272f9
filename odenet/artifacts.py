"""Files a run leaves behind, written so that a kill at any moment leaves the old file or the new one, whole.

Every write goes to a temporary file in the same folder, is flushed to disk and then renamed over the target.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from odenet.errors import RunError


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create `path` (and parents) and check that files can be written there.

    Raises:
        RunError: the folder cannot be made or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-"):
            pass
    except OSError as error:
        raise RunError(f"cannot write to the output folder {folder}: {error.strerror or error}") from error
    return folder


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write `content` to `path` atomically.

    Raises:
        RunError: the file cannot be written; whatever stood there before is untouched.
    """
    target = Path(path)
    partial = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, target)
    except OSError as error:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)
        raise RunError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` (UTF-8) to `path` atomically."""
    return write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as indented JSON to `path` atomically; NaN and infinity become null."""
    return write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        RunError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON ({error}); delete it to have it made again") from error


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> Path:
    """Write `state` (tensors, numbers, strings, lists and dicts of them) to `path` atomically with `torch.save`."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return write_bytes(path, buffer.getvalue())


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, without running any code that it may hold (`weights_only=True`).

    Raises:
        RunError: the file is missing or is not a checkpoint.
    """
    import torch

    if not Path(path).is_file():
        raise RunError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(f"the checkpoint {path} is corrupt ({reason}); delete it to train again") from error
    if not isinstance(state, dict):
        raise RunError(f"the checkpoint {path} holds a {type(state).__name__}, not a dict; delete it to train again")
    return state


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
