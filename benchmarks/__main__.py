"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import registry, report, runner


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one task and write ``NAME.jsonl`` and ``NAME.md``; without a name, list the tasks.

    Returns
    -------
    int : exit status. 0: done; 1: a run failed; 2: unknown task or model.
    """
    options = _parser().parse_args(arguments)
    if options.name is None:
        width = max(map(len, registry.MODULES))
        for name in registry.MODULES:
            task = registry.find(name)
            print(f"{name:<{width}} {task.description}\n{'':<{width}} models: {', '.join(task.models)}")
        return 0
    try:
        task = registry.find(options.name)
    except (KeyError, ImportError) as error:
        print(error.args[0], file=sys.stderr)
        return 2
    models = options.models.split(",") if options.models else list(task.models)
    if unknown := set(models) - set(task.models):
        print(f"unknown models {sorted(unknown)}; expected some of {', '.join(task.models)}.", file=sys.stderr)
        return 2
    return _run(task, models, options)


def _run(task: registry.Task, models: Sequence[str], options: argparse.Namespace) -> int:
    target = options.output / (task.name + ("-quick" if options.quick else ""))
    target.parent.mkdir(parents=True, exist_ok=True)
    records = []
    runs = runner.run(options.name, models, repeats=options.repeats, quick=options.quick, threads=options.threads)
    with open(f"{target}.jsonl", "w") as file:
        for record in runs:
            records.append(record)
            file.write(json.dumps(record) + "\n")
            file.flush()
            outcome = record.get("error", "done").splitlines()[-1]
            print(f"{record['model']}, repeat {record['repeat']}: {outcome}", file=sys.stderr)
    text = report.markdown(task, records)
    Path(f"{target}.md").write_text(text)
    print(text)
    return int(any("error" in record for record in records))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of gpx and its peers.")
    parser.add_argument("name", nargs="?", help="task, or module with a TASK; without it, the tasks are listed")
    parser.add_argument("--quick", action="store_true", help="a small version of the problem")
    parser.add_argument("--repeats", type=_positive, default=3, help="runs of every model (default: 3)")
    parser.add_argument("--models", help="some models only, separated by commas")
    parser.add_argument("--threads", type=_positive, default=runner.default_threads(), help="threads of every model")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results"), metavar="DIR", help="folder to write to"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
