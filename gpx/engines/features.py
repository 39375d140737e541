"""Inference in the space of the weights of finitely many features. Theory: docs/theory/features.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import gpytorch
import torch
from torch import Tensor

from gpx.engines.dense import ExactPosterior
from gpx.engines.exact import ExactPlan
from gpx.engines.memory import require_memory
from gpx.engines.projected import ProjectedPlan, Projecting
from gpx.engines.projections import Frame, Gaussian, blocks
from gpx.engines.wide import WidePlan, WidePosterior
from gpx.errors import InputError, StructureError
from gpx.inputs import Data
from gpx.linalg.directions import check_kind
from gpx.posterior import Posterior, make_generator
from gpx.prior import Prior
from gpx.sites import Sites
from gpx.structure.draws import Draws
from gpx.structure.feature_map import FeatureMap, feature_map
from gpx.structure.sparse_features import sparse_features

FEWEST = 256  # features of the first rounds of a fit
QUICK = 2e9  # N F^2 up to which one round does
MATRICES = 4  # F x F, that are held at a time
ROUGH = 1e-4  # nats per row and unit of a coordinate, that a gradient by random vectors is off by
SMALL = 4_000  # rows, or features, up to which a dense factorisation is the best


@dataclass(frozen=True, eq=False)
class FeatureFrame(Frame):
    """The features of a kernel: ``w = phi(x)``, all there is of f. draws: what they are made of; dims: columns of x."""

    complete: ClassVar[bool] = True

    kernel: gpytorch.kernels.Kernel
    features: int
    dims: int
    draws: tuple[Tensor, ...]

    @property
    def map(self) -> FeatureMap:
        """At the present hyperparameters."""
        return feature_map(self.kernel, self.features, self.dims, Draws(torch.Generator(), kept=self.draws))

    @property
    def size(self) -> int:
        return self.map.size

    @property
    def tensors(self) -> list[Tensor]:
        """What the kernel learns."""
        return [p for p in self.kernel.parameters() if p.requires_grad]

    def factor(self) -> None:
        return None

    def cross(self, x: Tensor) -> Tensor:
        return self.map(x).mT

    def prior(self, x: Tensor) -> Tensor:
        return self.map(x).square().sum(-1)

    def covariance(self, x: Tensor) -> Tensor:
        w = self.cross(x)
        return w.mT @ w

    def predictor(self, q: Gaussian) -> tuple[Tensor, Tensor]:
        """The mean of the weights, and R^-1 [F, F]: ``var f = |R^-1 phi|^2``."""
        identity = torch.eye(len(q.spread)).to(q.spread)
        return q.mean, torch.linalg.solve_triangular(q.spread, identity, upper=False)

    def predict(self, x: Tensor, weights: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        w = self.cross(x)
        return w.mT @ weights, (spread @ w).square().sum(0)

    def path(self, v: Tensor, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """The function of these weights."""
        features = self.map
        return lambda x: torch.cat([features(x[rows]) @ v for rows in blocks(len(x), features.size)])


@dataclass(frozen=True)
class FeaturesPlan(ProjectedPlan):
    """With the random numbers of the features of every kernel."""

    draws: tuple[tuple[Tensor, ...], ...]


@dataclass(frozen=True)
class Features(Projecting):
    """Inference with the weights of F random features, for kernels with a feature map and every likelihood of one latent.

    ``f(x) = phi(x) . w``, ``w ~ N(0, 1)``, with ``E phi(x) . phi(x') = k(x, x')``. The features are drawn once: this prior is
    the model, and what is said of it (evidence, posterior, paths) is exact. It comes near to that of the kernel as F grows, with
    an error that falls as ``F^(-1/2)``; sums of Linear, Constant and Cosine, and Periodic of one column, need no random features.
    Frequencies scale with the hyperparameters, so that the objective is smooth in these.
    Sparse features (`kernels.Graph` with walks or push) of which there are more than rows: by Cholesky's factor up to 4,000
    rows; for more, with a Gaussian likelihood, by conjugate gradients and an estimated log determinant
    (`Posterior.log_determinant_error`); variances are then those given the 64 data next to a point, upper bounds.

    Arguments: num_features: F, even: cosines and sines of F / 2 frequencies (for every stationary term of a sum; times the
    columns of a Linear factor); kind: how frequencies are coupled: "orthogonal" has the smallest errors, "iid", "simplex" (see
    `gpx.features`); seed: of the random numbers; batch_size: `fit` learns from so many rows at a time, None: from all, as from
    more sparse features than rows, of which there are no statistics that add.
    Raises: InputError for another value; StructureError for a kernel without a feature map.
    Cost: O(N F^2 + F^3) per evaluation, O(F^2) per predicted point; memory O(N + F^2). `fit` begins with 256 features.
    Sparse ones: O(nnz) per step of conjugate gradients, and memory.
    Source: Rahimi & Recht (2007), "Random features for large-scale kernel machines"; Yu et al. (2016), "Orthogonal random
    features".

    >>> Features(512)
    Features(num_features=512, kind='orthogonal', seed=0, batch_size=None)
    """

    num_features: int = 1024
    kind: str = "orthogonal"
    seed: int = 0
    batch_size: int | None = None

    precision: ClassVar[float] = 1e-6  # features of another seed differ by more

    def __post_init__(self) -> None:
        count = self.num_features
        if isinstance(count, bool) or not isinstance(count, int) or count < 2 or count % 2:
            raise InputError(
                f"Features needs num_features, an even number >= 2 (a cosine and a sine of every frequency), got {count!r}."
            )
        check_kind(self.kind, "Features")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InputError(f"Features needs seed, an integer, got {self.seed!r}.")
        size = self.batch_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise InputError(f"Features needs batch_size, a number of rows >= 1, or None, got {size!r}.")

    def plan(self, prior: Prior, data: Data) -> FeaturesPlan | ExactPlan | WidePlan:
        """Draw the random numbers, the same for the same seed; or have sparse features, where there are more than rows."""
        if is_wide(prior, data):
            return ExactPlan(data.x) if len(data.x) <= SMALL else WidePlan.of(prior, data.x)
        draws = data.team.share(lambda: self._drawn(prior, data.x.shape[1]))
        return FeaturesPlan(data.x, data.team, draws)

    def condition(self, prior: Prior, plan: Any, params: dict[str, Tensor], sites: Sites) -> Posterior:
        """Nothing is computed before it is asked for."""
        if isinstance(plan, ExactPlan):
            return ExactPosterior.of(prior, plan.x, sites)
        return (
            WidePosterior(prior, plan, sites)
            if isinstance(plan, WidePlan)
            else super().condition(prior, plan, params, sites)
        )

    def _drawn(self, prior: Prior, dims: int) -> tuple[tuple[Tensor, ...], ...]:
        found, generator = [], make_generator(self.seed)
        for kernel in prior.kernels:
            draws = Draws(generator, self.kind)
            size = feature_map(kernel, self.num_features, dims, draws).size
            require_memory(
                8 * MATRICES * size**2,
                f"Inference with {size:,} features",
                "use fewer: engines.Features(num_features=...)",
            )
            found.append(tuple(draws.kept))
        return tuple(found)

    def frames(self, prior: Prior, plan: FeaturesPlan) -> list[Frame]:
        """The features of every kernel, at the present hyperparameters."""
        dims = plan.x.shape[1]
        return [FeatureFrame(k, self.num_features, dims, d) for k, d in zip(prior.kernels, plan.draws, strict=True)]

    def state(self, plan: FeaturesPlan | ExactPlan | WidePlan) -> dict[str, Tensor]:
        """The random numbers."""
        if not isinstance(plan, FeaturesPlan):
            return {"features": torch.tensor(self.num_features)}
        named = {f"draw {k} {i}": d for k, draws in enumerate(plan.draws) for i, d in enumerate(draws)}
        return {"features": torch.tensor(self.num_features)} | named

    def restored(self, prior: Prior, data: Data, state: dict[str, Tensor]) -> FeaturesPlan | ExactPlan | WidePlan:
        """With the same random numbers."""
        if not any(name.startswith("draw") for name in state):
            return self.plan(prior, data)
        counts = [sum(name.startswith(f"draw {k} ") for name in state) for k in range(len(prior.kernels))]
        draws = tuple(tuple(state[f"draw {k} {i}"] for i in range(n)) for k, n in enumerate(counts))
        return FeaturesPlan(data.x, data.team, draws)

    def fits(self, data: Data, state: dict[str, Tensor]) -> bool:
        """Whether there are as many features."""
        return int(state.get("features", 0)) == self.num_features

    def batched(self, plan: Any) -> bool:
        """Not where sparse features are more than rows: all rows at once are what takes the least memory."""
        return super().batched(plan) and isinstance(plan, FeaturesPlan)

    def roughness(self, plan: Any, rows: int) -> float:
        """Of a gradient by random vectors."""
        return ROUGH * rows if isinstance(plan, WidePlan) else 0.0

    def early(self, left: int) -> Features:
        """With fewer features: a quarter of them for every round that is left."""
        return replace(self, num_features=min(self.num_features, max(FEWEST, 2 * (self.num_features // (2 * 4**left)))))

    def rounds(self, rows: int, plan: Any = None) -> tuple[int, ...]:
        """On 3,000 rows, thrice as many, ... and all of them, with 256 features; then with four times as many, ... and all.
        Sparse features are those of all rows at once: fewer rows meet too seldom to tell covariance from noise.
        """
        if isinstance(plan, WidePlan) or rows * self.num_features**2 <= QUICK:
            return (rows,)
        more = 0
        while FEWEST * 4**more < self.num_features:
            more += 1
        return (*self.parts(rows), *(1 + more) * (rows,))


def is_wide(prior: Prior, data: Data) -> bool:
    """Whether all kernels have sparse features, and more of them than there are rows, or than a dense factorisation takes."""
    try:
        sizes = [sparse_features(kernel, data.x[:1]).size for kernel in prior.kernels]
    except StructureError:
        return False
    if data.team.size > 1 and max(sizes) > SMALL:
        raise StructureError("engines.Features has its rows of sparse features in one process: use as many threads.")
    return data.team.size == 1 and (min(sizes) > min(SMALL, len(data.x)))
