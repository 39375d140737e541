"""The debiased Whittle likelihood: hyperparameters of a series from its periodogram, in O(N log N).

Theory: docs/theory/whittle.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from gpytorch.kernels import Kernel
from torch import Tensor
from torch.func import functional_call

from gpx.errors import InputError, StructureError
from gpx.inference.objectives import Objective
from gpx.inference.problem import Problem
from gpx.inputs import Data
from gpx.kernels.dense import dense
from gpx.kernels.walk import parts
from gpx.likelihoods import Gaussian
from gpx.linalg.lattice import Lattice, find_lattice
from gpx.linalg.spectrum import Window, expected_periodogram, periodogram, window
from gpx.prior import Prior
from gpx.structure.spectral_density import spectral_density

ADVICE = "use objectives.Evidence(), which needs neither a lattice nor a stationary kernel."


@dataclass(frozen=True)
class Whittle(Objective):
    """The Whittle likelihood of a series on a regular lattice, gaps allowed: ``-sum_k w_k [log(2 pi S_k) + I_k / S_k]``.

    I is the periodogram of ``y - mean`` at the Fourier frequencies without zero, w_k = 1 (1/2 at Nyquist), and S its exact
    expectation under kernel and noise, from the kernel at the lattice lags: finite length, aliasing and gaps are accounted
    for (debiased). With gaps the sum is scaled by (observed - 1) / (cells - 1), so that every datum counts once. Several
    outputs are independent series. It is for hyperparameters only: after a fit the engine conditions on the data as always,
    and ``gp.log_evidence()`` is the value of this objective.

    A constant has no influence: it is taken off by the mean of the observed targets, where a learned one stays (no standard
    error). Other mean functions are learned, as far as they vary.

    Arguments: debiased: False puts the spectral density of the kernel and the noise in the place of S, which is biased
    wherever a kernel is rough at the spacing (noise takes up what is aliased); for comparison, and for kernels that have a
    `structure.spectral_density`.
    Raises: InputError for more than one input column, stamps that are equal or off a lattice, or fewer than two observed
    targets in every output; StructureError for a likelihood that is not Gaussian, or a kernel that is not stationary.
    Cost: O(N log N) for N lattice cells; no matrix. Source: Sykulski, Olhede, Guillaumin, Lilly & Early (2019), "The
    debiased Whittle likelihood", Biometrika 106; naive: Whittle (1953), "The analysis of multiple stationary time series".

    >>> Whittle()
    Whittle(debiased=True)
    """

    flat: ClassVar[bool] = False
    needs_all_rows: ClassVar[bool] = True  # some rows of a series are another series
    debiased: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.debiased, bool):
            raise InputError(f"Whittle needs debiased=True or debiased=False, got {self.debiased!r}.")

    def __call__(self, problem: Problem) -> Tensor:
        """The value, in nats."""
        return self.prepared(problem)(problem)

    def prepared(self, problem: Problem) -> Periodograms:
        """This objective with lattice and mask of the data found, for many evaluations."""
        likelihood = problem.likelihood
        if not isinstance(likelihood, Gaussian):
            raise StructureError(
                f"objectives.Whittle() needs likelihoods.Gaussian(), got {type(likelihood).__name__}; use"
                f" objectives.{'EPEvidence' if likelihood.num_latents == 1 else 'ELBO'}()."
            )
        kernel = problem.prior.kernels[0]
        if offending := [type(k).__name__ for k in _leaves(kernel) if not k.is_stationary]:
            raise StructureError(
                f"objectives.Whittle() needs a stationary kernel, {offending[0]} is not (for a trend: GP(mean='linear'));"
                f" {ADVICE}"
            )
        return Periodograms(self.debiased, *_cells(problem.data))


@dataclass(frozen=True)
class Periodograms(Objective):
    """`Whittle` for one set of data: its rows [N'] on a lattice, and its outputs with two observed targets or more."""

    flat: ClassVar[bool] = False
    needs_all_rows: ClassVar[bool] = True

    debiased: bool
    rows: Tensor
    outputs: Tensor
    lattice: Lattice
    cells: Window

    def __call__(self, problem: Problem) -> Tensor:
        """The value, in nats."""
        found = periodogram(self._on_lattice(self._residual(problem)), self.cells)
        expected = (self._expected if self.debiased else self._density)(problem)
        size = self.lattice.size
        weights = torch.ones(size // 2, dtype=expected.dtype, device=expected.device)
        if size % 2 == 0:
            weights[-1] = 0.5
        terms = weights * ((2 * math.pi * expected).log() + found / expected)
        return -(terms * (self.cells.count - 1) / (size - 1)).sum()

    def _residual(self, problem: Problem) -> Tensor:
        """Targets less the prior mean [N', P]; missing ones have some finite value."""
        data = problem.data
        mean = _without_constant(problem.prior).mean_at(data.x[self.rows], problem.columns)
        return (data.filled[self.rows] - mean)[:, self.outputs]

    def _on_lattice(self, values: Tensor) -> Tensor:
        """Values [N', P] of the rows in their cells, [P, L]; zero elsewhere."""
        return _scatter(values, self.lattice)

    def _noise(self, problem: Problem) -> Tensor:
        """Noise variances of the cells [P or 1, L]."""
        likelihood: Any = problem.likelihood
        if likelihood.known_noise is None:
            return likelihood.noise.double().reshape(1, 1).expand(1, self.lattice.size)
        return self._on_lattice(likelihood.variances(problem.data.y)[self.rows][:, self.outputs])

    def _expected(self, problem: Problem) -> Tensor:
        x = problem.data.x
        lags = self.lattice.spacing * torch.arange(self.lattice.size, dtype=torch.float64, device=x.device)
        autocovariance = dense(problem.prior.kernels[0], x.new_zeros(1, 1), lags.to(x).unsqueeze(1))[0].double()
        return expected_periodogram(autocovariance, self._noise(problem), self.cells)

    def _density(self, problem: Problem) -> Tensor:
        size, spacing = self.lattice.size, self.lattice.spacing
        cycles = torch.arange(1, size // 2 + 1, dtype=torch.float64, device=problem.data.x.device) / size
        density = spectral_density(problem.prior.kernels[0])(2 * math.pi * cycles / spacing) / spacing
        noise = (self._noise(problem) * self.cells.mask).sum(-1, keepdim=True) / self.cells.count
        return density.double() + noise


def _without_constant(prior: Prior) -> Prior:
    """The prior whose constant mean is a number: its gradient is zero, and must not become a rounding error."""
    mean = prior.mean
    held = {"raw_constant": mean.raw_constant.detach()} if hasattr(mean, "raw_constant") else {}
    return replace(prior, mean=lambda x: functional_call(mean, held, (x,)))


def _cells(data: Data) -> tuple[Tensor, Tensor, Lattice, Window]:
    """Rows, outputs, lattice and mask of the series in the data. Raises: InputError for what is no series on a lattice."""
    if data.x.shape[1] != 1:
        raise InputError(f"objectives.Whittle() needs one input column, a series, got {data.x.shape[1]}; {ADVICE}")
    outputs = (data.observed.sum(0) > 1).nonzero().flatten()
    if not len(outputs):
        raise InputError(
            f"objectives.Whittle() needs two observed targets in an output, got {data.observed.sum(0).tolist()}; {ADVICE}"
        )
    seen = data.observed[:, outputs]
    rows = seen.any(1).nonzero().flatten()
    try:
        lattice = find_lattice(data.x[rows, 0])
    except InputError as error:
        raise InputError(f"{error} objectives.Whittle() needs one target per cell of a lattice; {ADVICE}") from error
    mask = _scatter(seen[rows].double(), lattice)
    shared = bool((mask == mask[:1]).all())
    return rows, outputs, lattice, window(mask[:1] if shared else mask)


def _scatter(values: Tensor, lattice: Lattice) -> Tensor:
    """Values [N, P] of stamps in their cells: [P, L] in float64, zero elsewhere."""
    cells = torch.zeros(values.shape[1], lattice.size, dtype=torch.float64, device=values.device)
    return cells.index_copy(1, lattice.index, values.mT.double())


def _leaves(kernel: Kernel) -> Iterator[Kernel]:
    """The kernels that a kernel is made of, down to those without parts."""
    inner = list(parts(kernel))
    if not inner:
        yield kernel
    for part in inner:
        yield from _leaves(part)
