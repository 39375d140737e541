"""Run notebooks from their first cell to their last: ``python docs/execute.py [--write] NOTEBOOK...``.

Every notebook runs in its own folder; the first error ends the run with status 1. With ``--write`` the outputs are kept in
the file. Without it the run only shows that the notebooks work; with the environment variable ``GPX_SMOKE=1`` they may
reduce their sizes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def execute(path: Path, write: bool) -> None:
    """Run one notebook; its outputs are written only if it ran to the end."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=1200,
        kernel_name="python3",
        record_timing=False,  # time stamps would change the file at every run
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    if write:
        # The patch version of Python says nothing about the notebook.
        notebook.metadata.get("language_info", {}).pop("version", None)
        nbformat.write(notebook, path)


def main() -> int:
    """Run the notebooks of the command line."""
    parser = argparse.ArgumentParser(description="Run notebooks from their first cell to their last.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="keep the outputs in the files")
    options = parser.parse_args()
    for path in options.notebooks:
        began = time.monotonic()
        try:
            execute(path, options.write)
        except CellExecutionError as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 1
        print(f"{path}: {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
