"""Differential equations on boxes and at scattered points, solved by Gaussian processes: `Problem`, `solve`, `Solution`.

>>> from gpx.pde import Box, D, Problem, solve, u
>>> problem = Problem(Box([(0, 1), (0, 1)]), D(u, 0, 2) + D(u, 1, 2), source=-1.0, boundary=0.0)
>>> print(f"{float(solve(problem, grid=30)([[0.5, 0.5]])[0]):.4f}")
0.0737
"""

from gpx.pde import problems
from gpx.pde.boundary import Dirichlet, Neumann, Periodic, Robin
from gpx.pde.domains import Box, Interval
from gpx.pde.expressions import D, Expression, Unknown, UnknownFunction, cos, exp, sin, u
from gpx.pde.observations import Observations
from gpx.pde.points import Points
from gpx.pde.problem import Problem
from gpx.pde.scattered import PointSolution
from gpx.pde.solution import Solution
from gpx.pde.solver import solve
from gpx.pde.storage import load

__all__ = [
    "Box", "D", "Dirichlet", "Expression", "Interval", "Neumann", "Observations", "Periodic", "PointSolution", "Points",
    "Problem", "Robin", "Solution", "Unknown", "UnknownFunction", "cos", "exp", "load", "problems", "sin", "solve", "u",
]  # fmt: skip
