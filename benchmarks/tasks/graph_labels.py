"""A million nodes of a grid, some of them with values: fits through random walks, and predictions at 10,000 others."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import peak_memory, timed
from benchmarks.registry import Metric, Setting, Task
from benchmarks.tasks.graphs import grid

SIDE, NEW, NOISE = 1_000, 10_000, 0.09
WALKS, LENGTH = 64, 10
FEW, MANY, STEPS = 1_000, 100_000, 100  # labels; steps of the optimiser


def run(labels: int) -> Any:
    """A model that fits so many labels: diffusion, its time and the noise learned."""

    def model(setting: Setting) -> dict[str, float]:
        import warnings

        import numpy as np

        import gpx

        side, count = (SIDE // 10, labels // 100) if setting.quick else (SIDE, labels)
        graph, random = grid(side), np.random.default_rng(setting.seed)
        nodes = random.permutation(side * side)
        train, new = nodes[:count], nodes[count : count + min(NEW, side * side - count)]
        y = np.sin(train // side / 40) * np.cos(train % side / 40) + NOISE**0.5 * random.standard_normal(count)
        kernel = gpx.kernels.Graph(graph, gpx.graphs.Diffusion(4.0), backend=gpx.graphs.Walks(WALKS, LENGTH))
        gp = gpx.GP(kernel, gpx.likelihoods.Gaussian(NOISE), engine=gpx.engines.Features())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gpx.FitWarning)
            _, fit = timed(lambda: gp.fit(train, y, max_iter=STEPS))
        prediction, predict = timed(lambda: gp.predict(new, of="f"))
        truth = np.sin(new // side / 40) * np.cos(new % side / 40)
        assert gp.result_ is not None
        return {
            "fit": fit,
            "evaluations": gp.result_.evaluations,
            "predictions": predict,
            "RMSE": float((prediction.mean.numpy() - truth).std()),
            "memory": peak_memory() / 1e9,
        }

    return model


TASK = Task(
    name="graph-labels",
    description="A grid of a million nodes with 1,000 or 100,000 labels: fits through walks, 10,000 predictions.",
    metrics=(
        Metric("fit", "s"),
        Metric("evaluations"),
        Metric("predictions", "s"),
        Metric("RMSE"),
        Metric("memory", "GB"),
    ),
    models={"few": run(FEW), "many": run(MANY)},
    reference="few",
)
