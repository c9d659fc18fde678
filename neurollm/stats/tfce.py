"""Threshold-free cluster enhancement on any graph, exactly.

The enhanced value of a vertex v is (Smith & Nichols 2009)

    TFCE(v) = ∫₀^v e_v(h)^E h^H dh

where e_v(h) is the number of vertices connected to v through vertices of at least h. No step is needed: walk
through the vertices from the highest down. A vertex joins the components of its higher neighbours, and a component
keeps its size until the next vertex joins it, so with parent(v) the next vertex to join the component of v

    TFCE(v) = s_v^E (v^(H+1) − parent(v)^(H+1)) / (H + 1) + TFCE(parent(v))

and s_v the number of vertices whose way to the root passes v (the max-tree; Berger et al. 2007). Only the edges
of a minimum spanning tree, with the order in which their lower ends appear as weights, join anything
new. Negative values are treated alike, with their sign put back.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from neurollm.errors import InvalidInput

_ROWS = 512  # vertices compared with all others at once


def tfce(values: np.ndarray, graph: sparse.sparray, E: float = 0.5, H: float = 2.0) -> np.ndarray:
    """Enhance every map.

    Parameters
    ----------
    values : ndarray, shape (V,) or (B, V)
        Statistics; NaN is not part of any cluster and stays NaN.
    graph : scipy.sparse array, shape (V, V)
        An edge wherever a value is stored that is not 0, in either direction.
    E, H : float
        Powers of extent and height.

    Returns
    -------
    ndarray, shape of `values`

    Raises
    ------
    InvalidInput
        The graph does not fit the values, a value is infinite, or a power is out of range.

    Examples
    --------
    >>> path = sparse.diags_array([1.0, 1.0], offsets=1, shape=(3, 3))
    >>> tfce(np.array([1.0, 2.0, -1.0]), path, E=1, H=0).tolist()
    [2.0, 3.0, -1.0]
    """
    values = np.asarray(values, float)
    n = values.shape[-1] if values.ndim else 0
    if values.ndim not in (1, 2) or not sparse.issparse(graph) or graph.shape != (n, n):
        found = graph.shape if sparse.issparse(graph) else type(graph).__name__
        raise InvalidInput(f"values of shape {values.shape} need a sparse graph of shape {(n, n)}, found {found}.")
    if np.isinf(values).any():
        raise InvalidInput("values hold an infinite statistic, which would enhance its cluster without bound.")
    if E < 0 or H < 0:
        raise InvalidInput(f"E is {E} and H is {H}; expected powers of at least 0.")
    edges = sparse.coo_array(graph)
    ends = np.stack([edges.row, edges.col])[:, (edges.row != edges.col) & (edges.data != 0)]
    ends = np.unique(np.sort(ends, axis=0), axis=1)
    out = np.zeros(values.shape)
    for one, enhanced in zip(np.atleast_2d(values), np.atleast_2d(out), strict=True):
        for sign in (1, -1):
            height = np.where(sign * one > 0, sign * one, 0.0)
            enhanced += sign * _enhance(height, ends, E, H)
        enhanced[np.isnan(one)] = np.nan
    return out


def nearest_neighbour_graph(directions: np.ndarray, k: int = 10) -> sparse.csr_array:
    """Join every vertex with the `k` others of the largest cosine.

    Parameters
    ----------
    directions : ndarray, shape (V, d)
        E.g. decoder rows. A row of zeros has no neighbours.
    k : int, default=10

    Returns
    -------
    csr_array, shape (V, V)
        Symmetric, 1 where either is among the nearest of the other.

    Raises
    ------
    InvalidInput
        `k` is less than 1, or a direction is not finite.

    Examples
    --------
    >>> nearest_neighbour_graph(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), k=1).toarray().tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    directions = np.asarray(directions)
    if directions.ndim != 2 or not np.isfinite(directions).all():
        raise InvalidInput("directions must be a table of finite numbers, one row per vertex.")
    if k < 1:
        raise InvalidInput(f"k is {k}; expected at least one neighbour.")
    n = len(directions)
    norms = np.linalg.norm(directions, axis=1)
    there = norms > 0
    unit = directions / np.where(there, norms, 1)[:, None]
    k, rows, columns = min(k, max(n - 1, 0)), [], []
    for start in range(0, n if k else 0, _ROWS):
        here = np.arange(start, min(start + _ROWS, n))
        cosine = np.where(there[here, None] & there, unit[here] @ unit.T, -np.inf)
        cosine[np.arange(here.size), here] = -np.inf
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        kept = np.isfinite(np.take_along_axis(cosine, nearest, axis=1))
        rows.append(np.repeat(here, k)[kept.ravel()])
        columns.append(nearest[kept])
    row, column = (np.concatenate(parts) if parts else np.empty(0, np.intp) for parts in (rows, columns))
    directed = sparse.csr_array((np.ones(row.size), (row, column)), shape=(n, n))
    return directed.maximum(directed.T).tocsr()


def _enhance(height: np.ndarray, ends: np.ndarray, E: float, H: float) -> np.ndarray:
    """Enhanced values of one map of heights ≥ 0."""
    order = np.argsort(-height, kind="stable")[: np.count_nonzero(height)]
    n = order.size
    rank = np.full(height.size, n)
    rank[order] = np.arange(n)
    joined = np.sort(rank[ends], axis=0)
    parent = _max_tree(joined[:, joined[1] < n], n)
    size = np.ones(n)
    for vertex, later in enumerate(parent.tolist()):
        if later < n:
            size[later] += size[vertex]
    power = np.append(height[order] ** (H + 1), 0.0)
    total = np.append(size**E * (power[:n] - power[parent]) / (H + 1), 0.0)
    parent = np.append(parent, n)
    # Sums along the way to the root, by doubling the length of the way.
    while (parent < n).any():
        total += total[parent]
        parent = parent[parent]
    out = np.zeros(height.size)
    out[order] = total[:n]
    return out


def _max_tree(edges: np.ndarray, n: int) -> np.ndarray:
    """For vertices numbered from the highest down, the next vertex to join the component of each; n at a root."""
    weights = sparse.csr_array((edges[1] + 1.0, (edges[0], edges[1])), shape=(n, n))
    tree = csgraph.minimum_spanning_tree(weights).tocoo()
    order = np.argsort(tree.col, kind="stable")
    parent, root = [n] * n, list(range(n))
    for high, low in zip(tree.row[order].tolist(), tree.col[order].tolist(), strict=True):
        while root[high] != high:
            root[high] = root[root[high]]
            high = root[high]
        parent[high] = root[high] = low
    return np.array(parent, dtype=np.intp)
