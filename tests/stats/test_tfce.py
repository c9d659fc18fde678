"""Threshold-free cluster enhancement against numeric integration and by hand; neighbour graphs by brute force."""

import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from neurollm.errors import InvalidInput
from neurollm.stats.tfce import nearest_neighbour_graph, tfce

RNG = np.random.default_rng(0)


def integrated(values, graph, E, H, step):
    """The definition, by the midpoint rule."""
    out = np.zeros(values.size)
    for sign in (1, -1):
        heights = sign * values
        for h in np.arange(step / 2, heights.max(), step):
            there = np.flatnonzero(heights >= h)
            _, label = connected_components(graph[there][:, there], directed=False)
            out[there] += sign * np.bincount(label)[label] ** E * h**H * step
    return out


def path(n):
    return sparse.diags_array([np.ones(n - 1)] * 2, offsets=[-1, 1], format="csr")


def test_by_hand():
    # Heights 3, 1, 2 on a path: singles from 3 to 1 and from 2 to 1, all three from 1 to 0.
    whole = 3**0.5 / 3
    expected = [whole + (27 - 1) / 3, whole, whole + (8 - 1) / 3]
    np.testing.assert_allclose(tfce(np.array([3.0, 1.0, 2.0]), path(3)), expected, rtol=1e-14)
    np.testing.assert_allclose(tfce(np.array([3.0, -1.0, 2.0]), path(3)), [9, -1 / 3, 8 / 3], rtol=1e-14)


@pytest.mark.parametrize(("E", "H"), [(0.5, 2), (1, 1), (2, 0.5), (0, 0)])
def test_equals_the_integral_on_multiples_of_the_step(E, H):
    graph = nearest_neighbour_graph(RNG.standard_normal((40, 3)), 3)
    values = np.round(RNG.standard_normal(40) * 16) / 8  # with ties and zeros
    fine = integrated(values, graph, E, H, 1 / 64)
    # The midpoint rule is exact for h^0 and h^1, and of second order otherwise.
    np.testing.assert_allclose(tfce(values, graph, E, H), fine, rtol=1e-12 if H in (0, 1) else 5e-3, atol=1e-12)


def test_equals_the_integral_in_steps_of_a_ten_thousandth():
    graph = nearest_neighbour_graph(RNG.standard_normal((12, 3)), 2)
    values = RNG.uniform(-0.4, 0.4, 12)
    np.testing.assert_allclose(tfce(values, graph), integrated(values, graph, 0.5, 2, 1e-4), rtol=0.005, atol=1e-5)


def test_maps_are_enhanced_one_by_one_and_the_sign_is_symmetric():
    graph = nearest_neighbour_graph(RNG.standard_normal((200, 5)), 4)
    maps = RNG.standard_normal((3, 200))
    together = tfce(maps, graph)
    np.testing.assert_array_equal(together, [tfce(one, graph) for one in maps])
    np.testing.assert_allclose(tfce(-maps, graph), -together)
    assert (np.sign(together) == np.sign(maps)).all()


def test_the_numbering_of_vertices_and_the_form_of_the_graph_do_not_matter():
    graph, values = nearest_neighbour_graph(RNG.standard_normal((60, 3)), 4), RNG.standard_normal(60)
    order = RNG.permutation(60)
    expected = tfce(values, graph)
    np.testing.assert_allclose(tfce(values[order], graph[order][:, order]), expected[order])
    one_way = sparse.triu(graph).tocoo() * -2.5 + sparse.eye_array(60)
    np.testing.assert_allclose(tfce(values, one_way), expected)


def test_a_missing_vertex_separates_its_neighbours():
    values = np.array([2.0, np.nan, 2.0])
    np.testing.assert_allclose(tfce(values, path(3)), [8 / 3, np.nan, 8 / 3])
    np.testing.assert_array_equal(tfce(np.zeros(3), path(3)), np.zeros(3))
    assert tfce(np.zeros((2, 0)), sparse.csr_array((0, 0))).shape == (2, 0)


def test_a_long_path_is_no_problem():
    n = 20_000
    enhanced = tfce(np.arange(1.0, n + 1), path(n), E=1, H=0)
    np.testing.assert_allclose(enhanced, np.cumsum(np.arange(n, 0, -1)))


@pytest.mark.parametrize("n", [1, 2, 7, 600])
def test_neighbours_are_those_of_the_largest_cosine(n):
    directions = RNG.standard_normal((n, 6)) * RNG.lognormal(size=(n, 1))
    graph = nearest_neighbour_graph(directions, k=3)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    cosine = unit @ unit.T - 9 * np.eye(n)
    expected = np.zeros((n, n))
    k = min(3, n - 1)
    np.put_along_axis(expected, np.argsort(-cosine, axis=1)[:, :k], 1.0, axis=1)
    np.testing.assert_array_equal(graph.toarray(), np.maximum(expected, expected.T))


def test_a_direction_of_zeros_has_no_neighbours():
    graph = nearest_neighbour_graph(np.array([[1.0, 0], [0, 0], [1, 1], [0, 1]]), k=2)
    assert graph.toarray()[1].sum() == graph.toarray()[:, 1].sum() == 0
    assert graph.nnz == 6


@pytest.mark.parametrize(
    "call",
    [
        lambda: tfce(np.ones(3), path(4)),
        lambda: tfce(np.ones(3), np.eye(3)),
        lambda: tfce(np.array([np.inf, 0, 0]), path(3)),
        lambda: tfce(np.ones(3), path(3), E=-1),
        lambda: nearest_neighbour_graph(np.array([[np.nan]])),
        lambda: nearest_neighbour_graph(np.ones((2, 2)), k=0),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(InvalidInput):
        call()
