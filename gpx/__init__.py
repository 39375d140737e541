"""gpx: Gaussian processes, one model for every engine.

>>> import gpx
>>> gp = gpx.GP(gpx.kernels.Matern(nu=2.5)).fit([0.0, 1.0, 2.0, 3.0], [0.1, 0.9, 1.1, 0.2])
>>> prediction = gp.predict([0.5, 1.5])
>>> prediction.mean.shape
torch.Size([2])
"""

__version__ = "0.1.0"

from gpx import (
    checking,
    datasets,
    engines,
    errors,
    features,
    graphs,
    kernels,
    likelihoods,
    means,
    models,
    objectives,
    pde,
    rules,
    structural_equation,
    structure,
)
from gpx.errors import FitWarning, InputError, NumericalError, StructureError, TeamError
from gpx.gp import GP
from gpx.graphs import Graph
from gpx.grid import Grid
from gpx.io import load, register
from gpx.structure.explain import explain

__all__ = [
    "GP",
    "FitWarning",
    "Graph",
    "Grid",
    "InputError",
    "NumericalError",
    "StructureError",
    "TeamError",
    "checking",
    "datasets",
    "engines",
    "errors",
    "explain",
    "features",
    "graphs",
    "kernels",
    "likelihoods",
    "load",
    "means",
    "models",
    "objectives",
    "pde",
    "register",
    "rules",
    "structural_equation",
    "structure",
]
