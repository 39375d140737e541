"""Weighted pseudo-observations: their optimum against Adam on the published objective, and against a full covariance."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.registry import Metric, Setting, Task
from benchmarks.report import table
from benchmarks.tasks.sparse import split

SETS = ("bike", "protein", "wine", "kin40k")
SIZE, SECONDS, PATIENCE = 100, 10.0, 10  # points; for ours; times as many for Adam


class At:
    """The selection of these points [M, D], whatever the data."""

    def __init__(self, points: Any):
        self.points = points

    def __call__(self, kernel: Any, X: Any, size: int, *, seed: int | None = 0) -> tuple[Any, Any]:
        return self.points, self.points.new_ones(len(self.points))


def run_gpx(setting: Setting) -> dict[str, float]:
    """The fit of a user with a time limit, and the bound of a full covariance at its points and hyperparameters."""
    import warnings

    import gpx
    from benchmarks.measure import timed

    found: dict[str, float] = {}
    for name in SETS:
        _, (X, y, X_test, y_test) = split(name, setting)
        engine = gpx.engines.Coreset(SIZE)
        gp = gpx.GP(gpx.kernels.RBF(ard=True), engine=engine)
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            _, seconds = timed(lambda: gp.fit(X, y, max_seconds=SECONDS / (10 if setting.quick else 1)))  # noqa: B023
        pseudo = gp.coreset()
        full = gpx.engines.Coreset(SIZE, select=At(pseudo.points), refine=False, max_gap=0.01 * len(y))
        switched = gpx.GP(gp.kernel_, gp.likelihood_, mean=gp.mean_, engine=full).condition(X, y)
        try:
            switched.coreset()
            asked = 0.0
        except gpx.StructureError:
            asked = 1.0
        found |= {
            f"{name}: bound per row": gp.log_evidence() / len(y),
            f"{name}: gap per row": pseudo.gap / len(y),
            f"{name}: says so": float(any("below that of a full covariance" in str(n.message) for n in notes)),
            f"{name}: switches": asked,
            f"{name}: seconds": seconds,
            f"{name}: NLPD": -float(gp.predict(X_test).log_prob(y_test).mean()),
        }
    return found


def run_adam(setting: Setting, rate: float) -> dict[str, float]:
    """The published objective in plain torch: batches of 512, Adam at this rate, points by k-means, double precision.

    The bound of all data is evaluated off the clock, at most 40 times; what is recorded is every one, with its time.
    """
    import torch
    from scipy.cluster.vq import kmeans2

    found: dict[str, float] = {}
    for name in SETS:
        _, parts = split(name, setting)
        X, y = (torch.as_tensor(v) for v in parts[:2])
        torch.manual_seed(setting.seed)
        centres, labels = kmeans2(X[:5000].numpy(), SIZE, seed=setting.seed, minit="++")
        weights = torch.bincount(torch.as_tensor(labels).long(), minlength=SIZE).clamp_min(1) * (
            len(y) / min(5000, len(y))
        )
        Z = torch.as_tensor(centres)
        model = Published(Z, y[torch.cdist(Z, X).argmin(1)], weights.double(), X.shape[1])
        adam = torch.optim.Adam(model.parameters(), lr=rate)
        limit = PATIENCE * SECONDS / (10 if setting.quick else 1)
        clock, evaluated, best = 0.0, 0.0, -math.inf
        while clock < limit:
            began = time.perf_counter()
            for rows in torch.randperm(len(y)).split(512):
                adam.zero_grad()
                loss = -model(X[rows], y[rows], len(y)) / len(y)
                loss.backward()
                adam.step()
                if clock + time.perf_counter() - began > limit:
                    break
            clock += time.perf_counter() - began
            if clock - evaluated >= limit / 40 or clock >= limit:
                evaluated = clock
                with torch.no_grad():
                    best = max(best, float(model(X, y, len(y))) / len(y))
                found[f"{name}: bound after {clock:.2f} s"] = best
        found |= {f"{name}: bound per row": best, f"{name}: seconds": clock}
    return found


def run_given(setting: Setting) -> dict[str, float]:
    """At the points and hyperparameters of a short fit: the optimum, computed, and Adam (at 0.01) on targets and weights alone, until
    its bound is within 0.001 nats per row of the optimum, or for a hundred times as long.
    """
    import warnings

    import torch

    import gpx
    from benchmarks.measure import timed

    found: dict[str, float] = {}
    for name in SETS:
        _, (X, y, *_) = split(name, setting)
        gp = gpx.GP(gpx.kernels.RBF(ard=True), mean="zero", engine=gpx.engines.Coreset(SIZE))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gpx.FitWarning)
            gp.fit(X, y, max_seconds=SECONDS / (10 if setting.quick else 1))
        pseudo = gp.coreset()
        engine = gpx.engines.Coreset(SIZE, select=At(pseudo.points), refine=False)
        again = gpx.GP(gp.kernel_, gp.likelihood_, mean="zero", engine=engine)
        optimum, seconds = timed(lambda: again.condition(X, y).log_evidence())  # noqa: B023
        rows, targets = torch.as_tensor(X), torch.as_tensor(y)
        weights = torch.full((SIZE,), len(y) / SIZE).double()
        model = Published(pseudo.points, targets[torch.cdist(pseudo.points, rows).argmin(1)], weights, X.shape[1])
        values = (gp.kernel_.lengthscale, gp.kernel_.outputscale, gp.likelihood_.noise)
        for held, value in zip((model.log_lengths, model.log_variance, model.log_noise), values, strict=True):
            held.requires_grad_(False).copy_(value.detach().log().reshape(held.shape))
        model.Z.requires_grad_(False)
        adam, clock, best = torch.optim.Adam([model.targets, model.log_weights], lr=0.01), 0.0, -math.inf
        evaluated = 0.0
        while clock < 100 * seconds and best < optimum - 1e-3 * len(y):
            for part in torch.randperm(len(y)).split(512):
                began = time.perf_counter()
                adam.zero_grad()
                (-model(rows[part], targets[part], len(y)) / len(y)).backward()
                adam.step()
                clock += time.perf_counter() - began
                if clock > evaluated + seconds:
                    break
            with torch.no_grad():
                best, evaluated = max(best, float(model(rows, targets, len(y)))), clock
        found |= {f"{name}: optimum": seconds, f"{name}: Adam": clock, f"{name}: times": clock / seconds}
        found[f"{name}: short of it"] = (optimum - best) / len(y)
    return found


def Published(Z: Any, targets: Any, weights: Any, dims: int) -> Any:
    """``sum_n log N(y_n; mu_n, s2) - tr(...) / (2 s2) - KL(q || p)`` with ``A = K + s2 / weights``, as a module."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.Z, self.targets = torch.nn.Parameter(Z.clone()), torch.nn.Parameter(targets.clone())
            self.log_weights = torch.nn.Parameter(weights.log())
            self.log_lengths = torch.nn.Parameter(torch.full((dims,), 0.5 * math.log(dims)).double())
            self.log_variance, self.log_noise = (
                torch.nn.Parameter(torch.tensor(v).double()) for v in (0.0, math.log(0.1))
            )

        def kernel(self, a: Any, b: Any) -> Any:
            lengths = self.log_lengths.exp()
            return self.log_variance.exp() * torch.exp(-0.5 * torch.cdist(a / lengths, b / lengths).square())

        def forward(self, X: Any, y: Any, rows: int) -> Any:
            noise, variance = self.log_noise.exp(), self.log_variance.exp()
            K, spread = self.kernel(self.Z, self.Z), noise * (-self.log_weights).exp()
            root = torch.linalg.cholesky(K + spread.diag())
            half = torch.linalg.solve_triangular(root, self.kernel(self.Z, X), upper=False)
            white = torch.linalg.solve_triangular(root, self.targets[:, None], upper=False)
            inner = torch.linalg.solve_triangular(root, K, upper=False)
            mean = (half.mT @ white)[:, 0]
            fit = -0.5 * ((y - mean).square() / noise + torch.log(2 * math.pi * noise)).sum()
            fit = fit - 0.5 * (len(y) * variance - half.square().sum()) / noise
            solved = torch.cholesky_solve(self.targets[:, None], root)
            trace = torch.linalg.solve_triangular(root.mT, inner, upper=True).diagonal().sum()
            logdet = 2 * root.diagonal().log().sum() - spread.log().sum()
            divergence = 0.5 * (-trace + (solved.mT @ K @ solved)[0, 0] + logdet)
            return rows / len(y) * fit - divergence

    return Model()


def closing(records: Sequence[Mapping[str, Any]]) -> str:
    """By set and repeat: the gap, and the time at which Adam reaches the bound of ours, in times of ours."""
    rows = [
        ["set", "repeat", "gap per row", "says so", "bound per row", "s", "Adam", "its bound", "s", "its time to ours"]
    ]
    done = {(r["model"], r["repeat"]): r["metrics"] for r in records if "metrics" in r}
    for (model, repeat), adam in done.items():
        ours = done.get(("gpx", repeat))
        if not model.startswith("adam") or ours is None:
            continue
        for name in SETS:
            bound, seconds = ours[f"{name}: bound per row"], ours[f"{name}: seconds"]
            prefix = f"{name}: bound after "
            times = {k.removeprefix(prefix).removesuffix(" s"): v for k, v in adam.items() if k.startswith(prefix)}
            reached = [float(k) for k, v in times.items() if v >= bound]
            ratio = f"{min(reached) / seconds:.1f} x" if reached else f"> {adam[f'{name}: seconds'] / seconds:.1f} x"
            cells = [f"{ours[f'{name}: {what}']:.4f}" for what in ("gap per row",)]
            says = "yes" if ours[f"{name}: says so"] else "no"
            if ours[f"{name}: switches"]:
                says += ", switches"
            values = [f"{bound:.4f}", f"{seconds:.1f}", model.removeprefix("adam-")]
            values += [f"{adam[f'{name}: bound per row']:.4f}", f"{adam[f'{name}: seconds']:.0f}"]
            rows.append([name, str(repeat), *cells, says, *values, ratio])
    return table(rows)


TASK = Task(
    name="coreset",
    description="100 pseudo-observations: their optimum, 10 s, against Adam on the published objective, 100 s.",
    metrics=tuple(
        Metric(f"{name}: {what}", unit, compare)
        for name in SETS
        for what, unit, compare in (
            ("bound per row", "nats", "difference"),
            ("gap per row", "nats", "difference"),
            ("NLPD", "nats", "difference"),
            ("seconds", "s", "ratio"),
            ("optimum", "s", "ratio"),
            ("times", "x of Adam at given points", "ratio"),
            ("short of it", "nats", "difference"),
        )
    ),
    models={
        "gpx": run_gpx,
        "given": run_given,
        "adam-0.001": lambda setting: run_adam(setting, 0.001),  # as published
        "adam-0.01": lambda setting: run_adam(setting, 0.01),
    },
    closing=closing,
)
