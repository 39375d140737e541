"""Posteriors as mixtures over kernels: means, deviations and draws of u and of the unknowns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpx.pde.domains import Box
from gpx.pde.functions import Functions, weighted
from gpx.pde.joint import Block


@dataclass(frozen=True)
class Estimate:
    """What the data say of an unknown: value and standard error std, of a number; on the grid, of a function."""

    value: float | Tensor
    std: float | Tensor


@dataclass(frozen=True)
class Component:
    """The posterior for one kernel: blocks; state [N] and spread [N, k]: ``state + spread N(0, I)``; numbers [p], of names, and
    their spread [p, k], by the same k numbers.
    """

    weight: float
    blocks: tuple[Block, ...]
    state: np.ndarray
    spread: np.ndarray
    names: tuple[str, ...]
    numbers: np.ndarray
    number_spread: np.ndarray

    def at(self, domain: Box, normal: np.ndarray) -> Functions:
        """The functions and numbers for k independent normal numbers; the mean for zeros."""
        state, first, found = self.state + self.spread @ normal, 0, {}
        for block in self.blocks:
            found[block.name] = block.function(state[first : first + block.size])
            first += block.size
        numbers = dict(zip(self.names, map(float, self.numbers + self.number_spread @ normal), strict=True))
        return Functions(domain, found.pop("u"), found, numbers)

    def mean(self, domain: Box) -> Functions:
        """The functions and numbers of the mean."""
        return self.at(domain, np.zeros(self.spread.shape[1]))

    def deviations(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(mean, standard deviation) of every function at the nodes."""
        found, first = [], 0
        for block in self.blocks:
            part = slice(first, first + block.size)
            matrix = block.design(None, ())
            mean = block.grid.jet(block.function(self.state[part]).coefficients, [()])[()].numpy()
            found.append((mean, np.linalg.norm(matrix @ self.spread[part], axis=1)))
            first += block.size
        return found


@dataclass(frozen=True)
class Draws:
    """The posterior of u and of the unknowns: a mixture of components, one for each kernel, with weights that sum to one."""

    domain: Box
    components: tuple[Component, ...]

    def mean(self) -> Functions:
        """The mean of the mixture, in the functions of all components together."""
        means = [c.mean(self.domain) for c in self.components]
        weights = [c.weight for c in self.components]
        others = {name: weighted([m.others[name] for m in means], weights) for name in means[0].others}
        numbers = {name: self._number(name)[0] for name in means[0].numbers}
        return Functions(self.domain, weighted([m.u for m in means], weights), others, numbers)

    def deviations(self) -> list[np.ndarray]:
        """Standard deviations at the nodes, of u and of every unknown function."""
        found = []
        weights = np.array([c.weight for c in self.components])[:, None]
        for parts in zip(*(c.deviations() for c in self.components), strict=True):
            means, stds = (np.stack(values) for values in zip(*parts, strict=True))
            mean = (weights * means).sum(0)
            found.append(np.sqrt((weights * (stds**2 + (means - mean) ** 2)).sum(0)))
        return found

    def estimates(self, shape: Sequence[int]) -> dict[str, Estimate]:
        """The unknown numbers and functions, by their names."""
        means, stds = self.mean(), self.deviations()[1:]
        nodes = [axis.nodes for axis in self.components[0].blocks[0].grid.axes]
        numbers = {name: Estimate(*self._number(name)) for name in means.numbers}
        functions = {
            block.name: Estimate(means.others[block.name].on(nodes), torch.from_numpy(std.reshape(shape)))
            for block, std in zip(self.components[0].blocks[1:], stds, strict=True)
        }
        return numbers | functions

    def draw(self, count: int, seed: int | None) -> list[Functions]:
        """Independent draws. Cost of each: O(N k)."""
        random = np.random.default_rng(seed)
        chosen = random.choice(len(self.components), count, p=[c.weight for c in self.components])
        return [self._one(self.components[k], random) for k in chosen]

    def _one(self, component: Component, random: np.random.Generator) -> Functions:
        return component.at(self.domain, random.standard_normal(component.spread.shape[1]))

    def _number(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation of an unknown number."""
        place = self.components[0].names.index(name)
        weights = np.array([c.weight for c in self.components])
        means = np.array([c.numbers[place] for c in self.components])
        squares = np.array([(c.number_spread[place] ** 2).sum() for c in self.components])
        mean = float(weights @ means)
        return mean, float(np.sqrt(weights @ (squares + (means - mean) ** 2)))
