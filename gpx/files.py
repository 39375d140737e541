"""Files of tensors in safetensors, with everything else as JSON in the header, guarded by a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

import gpx
from gpx.errors import InputError

FORMAT = 1


def as_path(path: Any) -> Path:
    """Raises: InputError for what is no path of a file."""
    try:
        found = Path(path)
    except TypeError:
        found = Path()
    if not found.name:
        raise InputError(
            f"Expected the path of a model file, such as 'model.gpx' (or, for fit(..., resume=), a fitted GP), got {path!r}."
        )
    return found


def write(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write to a temporary file first and rename it, so that no partial file is ever left.

    Raises: InputError if the file cannot be written.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    text = json.dumps(header)
    content = to_bytes(tensors, metadata={"gpx": text, "digest": digest(text, tensors)})
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power failure could leave the new name on an empty file
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"Cannot write a model to {path}: {error.strerror}; choose a file in an existing folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors. Raises: InputError for a file that is missing, truncated, edited or of another kind."""
    if not path.is_file():
        raise InputError(f"There is no model file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable model file (truncated, or of another kind): {error}.") from error
    if "gpx" not in metadata:
        raise InputError(f"{path} is a safetensors file, but not a model that gpx saved.")
    if metadata.get("digest") != digest(metadata["gpx"], tensors):
        raise InputError(f"{path} was changed after it was saved (its checksum differs); save the model again.")
    header = json.loads(metadata["gpx"])
    if header["format"] != FORMAT:
        raise InputError(
            f"{path} has format {header['format']}, this gpx {gpx.__version__} reads {FORMAT}; update gpx."
        )
    return header, tensors


def digest(text: str, tensors: dict[str, Tensor]) -> str:
    """The checksum of a header and tensors."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        found.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        found.update(tensors[name].numpy().tobytes())
    return found.hexdigest()
