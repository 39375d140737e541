"""Centres of clusters of rows."""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from gpx.selection.base import check_request, make_random
from gpx.structure.metric import require_metric

ROWS = (5_000, 10)  # rows that are clustered: at most so many, or this multiple of the number of clusters


@torch.no_grad()
def kmeans(kernel: gpytorch.kernels.Kernel, X: Tensor, size: int, *, seed: int | None = 0) -> tuple[Tensor, Tensor]:
    """Centres of k-means: ``min_Z sum_n min_m |x_n - z_m|^2`` from a k-means++ start, columns in units of their spread.

    Arguments: kernel: whose inputs must have distances; X: [N, D] numeric columns; size: how many centres; seed: of the start
    and, above 5,000 rows and ten per centre, of the rows that are clustered.
    Returns: points [M, D], M <= size: fewer where there are fewer distinct rows; weights [M]: rows in each cluster, summing to N.
    Raises: InputError unless 0 < size; StructureError for a kernel of labels. Cost: O(size^2 D) per step of Lloyd's algorithm,
    independent of N.
    Source: Arthur & Vassilvitskii (2007), "k-means++: the advantages of careful seeding".

    >>> import gpx
    >>> points, weights = kmeans(gpx.kernels.RBF(), torch.tensor([[0.0], [0.5], [5.0]]).double(), 2)
    >>> sorted(zip(points[:, 0].tolist(), weights.tolist()))
    [(0.25, 2.0), (5.0, 1.0)]
    """
    require_metric(kernel, "selection.kmeans")
    check_request(X, size)
    random = make_random(seed)
    limit = max(ROWS[0], ROWS[1] * size)
    rows = X[torch.as_tensor(random.permutation(len(X))[:limit], device=X.device).sort().values]
    points, counts = torch.unique(rows, dim=0, return_counts=True)
    if len(points) > size:
        from sklearn.cluster import KMeans  # a quarter of the time and of the memory of `import gpx`, were it there

        scale = rows.std(0)
        scale = torch.where(scale > 0, scale, 1.0)
        found = KMeans(size, n_init=1, random_state=int(random.integers(2**31))).fit((rows / scale).cpu().numpy())
        counts = torch.as_tensor(found.labels_).to(X.device).long().bincount(minlength=size)
        points = torch.as_tensor(found.cluster_centers_).to(X) * scale
    return points, counts.to(X) * (len(X) / len(rows))
