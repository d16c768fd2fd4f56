"""Metrics of estimated directed graphs: SHD, SID, edge rates."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy.typing import ArrayLike

from ..._arguments import checked


class EdgeScores(NamedTuple):
    """Edge-level agreement of an estimated graph with the true one.

    Attributes:
      true_positive_rate: Correctly directed edges, as a fraction of the true edges.
      false_discovery_rate: Reversed and false edges, as a fraction of the estimated edges.
      false_positive_rate: Reversed and false edges, as a fraction of the pairs without a true
        edge.
      reversed: Number of estimated edges with the wrong direction.
      estimated: Number of estimated edges.
    """

    true_positive_rate: float
    false_discovery_rate: float
    false_positive_rate: float
    reversed: int
    estimated: int


@checked()
def edge_scores(estimate: ArrayLike, truth: ArrayLike) -> EdgeScores:
    r"""TPR, FDR and FPR of the edges of an estimated graph.

    Args:
      estimate: Adjacency matrix (d, d); non-zero entries are edges `i -> j`.
      truth: Adjacency matrix of the true graph.

    Returns:
      An `EdgeScores`; rates over zero edges are 0, except for the true positive rate of a true
      graph without edges, which is 1.

    Raises:
      ValueError: If the two are not square matrices of the same size or hold NaN.

    Reference:
      Zheng et al., DAGs with NO TEARS, 2018 (arXiv 1803.01422).

    Example:
      >>> from sparsejax.contrib.dag import edge_scores
      >>> edge_scores([[0, 1], [0, 0]], [[0, 0], [1, 0]]).false_discovery_rate
      1.0
    """
    found, true = _graphs("edge_scores", estimate=estimate, truth=truth)
    hits, backwards = int((found & true).sum()), int((found & true.T & ~true).sum())
    wrong = int(found.sum()) - hits
    pairs = len(true) * (len(true) - 1) // 2
    edges, count = int(true.sum()), int(found.sum())
    rate = hits / edges if edges else 1.0
    return EdgeScores(rate, wrong / max(count, 1), wrong / max(pairs - edges, 1), backwards, count)


@checked()
def shd(estimate: ArrayLike, truth: ArrayLike) -> int:
    r"""Structural Hamming distance: edges to add, remove or reverse; a reversal counts once.

    Args:
      estimate: Adjacency matrix (d, d); non-zero entries are edges `i -> j`.
      truth: Adjacency matrix of the true graph.

    Returns:
      The number of pairs of nodes between which the two graphs differ.

    Raises:
      ValueError: If the two are not square matrices of the same size or hold NaN.

    Reference:
      Tsamardinos et al., The max-min hill-climbing Bayesian network structure learning algorithm,
      2006.

    Example:
      >>> from sparsejax.contrib.dag import shd
      >>> shd([[0, 1], [0, 0]], [[0, 0], [1, 0]])
      1
    """
    found, true = _graphs("shd", estimate=estimate, truth=truth)
    differ = (found != true) | (found != true).T
    return int(np.triu(differ, 1).sum())


@checked()
def shd_cpdag(estimate: ArrayLike, truth: ArrayLike) -> int:
    r"""SHD-C, the structural Hamming distance of the Markov equivalence classes of two graphs.

    Args:
      estimate: Adjacency matrix (d, d) of an acyclic graph.
      truth: Adjacency matrix of the true graph, also acyclic.

    Returns:
      The number of pairs of nodes between which the two `cpdag` differ.

    Raises:
      ValueError: If the two are not square matrices of the same size, hold NaN or have cycles.

    Example:
      >>> from sparsejax.contrib.dag import shd_cpdag
      >>> shd_cpdag([[0, 1], [0, 0]], [[0, 0], [1, 0]])
      0
    """
    found, true = _graphs("shd_cpdag", estimate=estimate, truth=truth)
    for name, graph in (("estimate", found), ("truth", true)):
        _closure(f"shd_cpdag: {name}", graph)
    return shd(cpdag(found), cpdag(true))


@checked()
def cpdag(graph: ArrayLike) -> Bool[np.ndarray, "d d"]:
    r"""The completed partially directed acyclic graph (CPDAG) of a Markov equivalence class.

    Edges of v-structures keep their direction, and so do edges that Meek's rules orient; all other
    edges are undirected.

    Args:
      graph: Adjacency matrix (d, d) of an acyclic graph.

    Returns:
      A boolean matrix (d, d); an undirected edge is set both ways.

    Raises:
      ValueError: If the graph is not square, holds NaN or has a cycle.

    Reference:
      Meek, Causal inference and causal explanation with background knowledge, 1995.

    Example:
      >>> from sparsejax.contrib.dag import cpdag
      >>> cpdag([[0, 1, 0], [0, 0, 1], [0, 0, 0]]).astype(int).tolist()
      [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    """
    (dag,) = _graphs("cpdag", graph=graph)
    _closure("cpdag: graph", dag)
    joined = dag | dag.T
    # i -> j <- k with i and k not joined.
    apart = ~joined & ~np.eye(len(dag), dtype=bool)
    collider = dag & (_count(apart, dag) > 0)
    known = collider
    while True:
        more = known | (_meek(known, joined) & dag)
        if (more == known).all():
            return known | (joined & ~known & ~known.T)
        known = more


def _meek(known: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """Edges oriented by Meek's rules, which create neither colliders nor cycles."""
    line = joined & ~known & ~known.T
    apart = ~joined & ~np.eye(len(joined), dtype=bool)
    first = _count(known.T, apart).T > 0  # k -> i - j, k and j apart: [j, i] counts k
    first = line & first.T
    second = line & (_count(known, known) > 0)  # i -> k -> j
    third = np.zeros_like(line)
    for i, j in zip(*np.nonzero(line)):  # i - k -> j, i - l -> j, k and l apart
        both = line[i] & known[:, j]
        third[i, j] = apart[np.ix_(both, both)].any()
    return first | second | third


@checked()
def sid(estimate: ArrayLike, truth: ArrayLike) -> int:
    r"""Structural intervention distance: number of pairs with a wrong intervention effect.

    Counts the ordered pairs (i, j) for which the effect of an intervention at i on j, computed by
    adjusting for the parents of i in the estimate, is wrong in the true graph: j is one of these
    parents but a descendant of i, a parent descends from a node on a directed path from i to j, or
    another path between i and j remains open.

    Args:
      estimate: Adjacency matrix (d, d) of an acyclic graph.
      truth: Adjacency matrix of the true graph, also acyclic.

    Returns:
      An integer between 0 and d (d - 1); the distance is not symmetric.

    Raises:
      ValueError: If the two are not square matrices of the same size, hold NaN or have cycles.

    Reference:
      Peters and Buhlmann, Structural Intervention Distance, 2013 (arXiv 1306.1043).

    Example:
      >>> from sparsejax.contrib.dag import sid
      >>> sid([[0, 1], [0, 0]], [[0, 0], [1, 0]])
      2
    """
    found, true = _graphs("sid", estimate=estimate, truth=truth)
    _closure("sid: estimate", found)
    below = _closure("sid: truth", true)  # [i, j]: j is i or descends from it
    return sum(_wrong_effects(i, found[:, i], true, below) for i in range(len(true)))


def _wrong_effects(i: int, given: np.ndarray, dag: np.ndarray, below: np.ndarray) -> int:
    """The j for which adjusting for `given` does not give the effect of i."""
    children = np.flatnonzero(dag[i])
    leads = below[children]  # [child, j]: the edge to this child begins a directed path to j
    # w is on a path from i to j: below i, above j; bad if a given node is below such a w.
    spoiled = below[i] & (below[:, given].any(axis=1)) & (np.arange(len(dag)) != i)
    descends = (below & spoiled[:, None]).any(axis=0)
    open_trails = _open_trails(i, children, given, dag, below)
    backdoor, forward = open_trails[0], (open_trails[1:] & ~leads).any(axis=0)
    wrong = np.where(given, below[i], descends | backdoor | forward)
    wrong[i] = False
    return int(wrong.sum())


def _open_trails(i, children, given, dag, below) -> np.ndarray:
    """Nodes d-connected to i: row 0 through its parents, one more row for each child.

    A search over (node, whether the trail entered it along an edge), two states for each node.
    Trails do not return to i, since paths do not.
    """
    d = len(dag)
    above_given = below[:, given].any(axis=1)
    down = dag.copy()
    down[i] = down[:, i] = False
    entered = np.zeros((1 + len(children), d), bool)  # the last edge points at the node
    entered[np.arange(1, 1 + len(children)), children] = True
    left = np.zeros_like(entered)  # the last edge points away from the node
    left[0] = dag[:, i]
    while True:
        pass_down = (entered | left) & ~given
        pass_up = (left & ~given) | (entered & above_given)
        more = entered | (_count(pass_down, down) > 0), left | (_count(pass_up, down.T) > 0)
        if (more[0] == entered).all() and (more[1] == left).all():
            return entered | left
        entered, left = more


def _count(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.astype(np.float32) @ b.astype(np.float32)


def _closure(caller: str, dag: np.ndarray) -> np.ndarray:
    """[i, j]: whether there is a path from i to j, possibly of length 0."""
    reach = dag.copy()
    for _ in range(max(1, len(dag)).bit_length()):
        reach = reach | (_count(reach, reach) > 0)
    if reach.diagonal().any():
        raise ValueError(
            f"{caller}, the graph, must be acyclic, got one with a cycle; "
            "dag.threshold_to_dag(weights, 0.0) removes the weakest edges until it is acyclic."
        )
    return reach | np.eye(len(dag), dtype=bool)


def _graphs(caller: str, **named: ArrayLike) -> list[np.ndarray]:
    for name, graph in named.items():
        if np.asarray(graph).dtype.kind not in "biuf":
            raise TypeError(f"{caller}: {name} must be a matrix of numbers, got {graph!r:.80}.")
    graphs = tuple(named.values())
    if any(np.isnan(np.asarray(graph, float)).any() for graph in graphs):
        raise ValueError(f"{caller}: {', '.join(named)} must not hold NaN; set missing edges to 0.")
    out = [np.asarray(graph) != 0 for graph in graphs]
    shapes = [graph.shape for graph in out]
    if any(len(s) != 2 or s[0] != s[1] or s != shapes[0] for s in shapes):
        raise ValueError(
            f"{caller}: {', '.join(named)} must be square adjacency matrices (d, d) of one size, "
            f"got {shapes}."
        )
    return out
