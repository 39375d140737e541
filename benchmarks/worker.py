"""One model, once: ``python -m benchmarks.worker TASK MODEL SEED QUICK`` ends with a line of JSON."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys

from benchmarks.measure import peak_memory
from benchmarks.registry import Setting, find

PACKAGES = {
    "gpx": "gpx-torch",
    "torch": "torch",
    "gpytorch": "gpytorch",
    "celerite2": "celerite2",
    "tinygp": "tinygp",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "numpy": "numpy",
    "numba": "numba",
}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            # gpx itself may run from its source folder.
            found[name] = getattr(sys.modules.get(name), "__version__", "not installed")
    return found


def main(task: str, model: str, seed: str, quick: str) -> None:
    """Run the model and print its metrics, with the peak memory of the process and the versions."""
    metrics = find(task).models[model](Setting(quick=quick == "quick", seed=int(seed)))
    metrics["peak memory"] = peak_memory() / 2**20
    print(json.dumps({"metrics": metrics, "versions": versions()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
