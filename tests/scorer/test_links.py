"""Which nodes are the same, and which follows on which."""

import numpy as np
import pytest
from numpy.typing import NDArray
from opdscope_scorer.links import END, Links, Path, chain_links, link, plant

Ints = NDArray[np.int64]


def path(tokens: list[int], positions: list[int], off: float = 0.0, *, success: bool = True) -> Path:
    """A rollout whose positions all have the same off-path mass."""
    return Path(tokens=tokens, off_path_L=np.full(len(tokens), off), success=success, positions=positions)


def linked(paths: list[Path], known: list[tuple[int, int]] | None = None) -> Links:
    """Links of the rollouts, when tokens 0, 1 and 2 are the candidates of every node."""
    forest = plant(paths)
    token_NK = np.tile([0, 1, 2, -1], (len(forest.places), 1))
    known_NK = np.zeros(token_NK.shape, np.bool_)
    for node, entry in known or []:
        known_NK[node, entry] = True
    return link(forest, paths, token_NK, known_NK)


def triples(links: Links) -> set[tuple[int, int, int]]:
    """Node, entry and child of all links."""
    return set(zip(links.node_E.tolist(), links.entry_E.tolist(), links.child_E.tolist(), strict=True))


def test_nodes_of_one_rollout_are_a_chain() -> None:
    """Every taken token leads to the next node, and the last one to the known end."""
    links = linked([path([2, 0, 1], [0, 1, 2])])

    assert triples(links) == {(0, 2, 1), (1, 0, 2), (2, 1, END)}
    assert links.value_E[links.child_E == END].tolist() == [1.0]


def test_a_common_prefix_is_one_node() -> None:
    """Two rollouts that part at their second token share the first node and the second; then they have their own."""
    paths = [path([0, 1, 2], [0, 1, 2]), path([0, 2, 2], [0, 1, 2], success=False)]

    forest = plant(paths)
    links = linked(paths)

    assert [(place.path, place.position) for place in forest.places] == [(0, 0), (0, 1), (0, 2), (1, 2)]
    assert [forest.of_path(0), forest.of_path(1)] == [[0, 1, 2], [0, 1, 3]]
    assert triples(links) == {(0, 0, 1), (1, 1, 2), (1, 2, 3), (2, 2, END), (3, 2, END)}


def test_a_rollout_passes_the_nodes_of_others_on_its_prefix() -> None:
    """A node that only one rollout chose links the chains of all that pass it."""
    paths = [path([0, 1, 2, 0], [0, 3]), path([0, 1, 2, 1], [0, 1])]

    forest = plant(paths)

    assert [position for _, position in forest.passed[0]] == [0, 1, 3]
    assert forest.of_path(0) == [0, 2, 1]


def test_skipped_positions_bound_the_error() -> None:
    """The bound is the sum of the masses off the path at the positions between two nodes, at most 1."""
    links = linked([path([0, 0, 0, 0, 0], [0, 3], off=0.1)])
    far = linked([path([0] * 50, [0, 40], off=0.1)])

    assert links.skipped_E.tolist() == pytest.approx([0.2, 0.1])
    assert far.skipped_E.tolist() == pytest.approx([1.0, 0.9])


def test_of_two_ways_on_the_surer_counts() -> None:
    """Rollouts that part between two nodes both follow on one entry; one of them left the path."""
    first, second = path([0, 1, 0], [0, 2]), path([0, 2, 0], [0, 2])
    first.off_path_L[1], second.off_path_L[1] = 0.2, 0.9

    links = linked([second, first])

    after_first = links.child_E[(links.node_E == 0)].tolist()
    assert after_first == [2]
    assert links.skipped_E[links.node_E == 0].tolist() == pytest.approx([0.2])


def test_tokens_without_entry_or_with_a_known_value_link_to_nothing() -> None:
    """A chain is cut at both."""
    links = linked([path([0, 7, 1, 2], [0, 1, 2, 3])], known=[(3, 2)])

    assert triples(links) == {(0, 0, 1), (2, 1, 3)}


def test_every_node_is_reached_before_it_is_left() -> None:
    """In any order of rollouts."""
    random = np.random.default_rng(0)
    paths = [path(random.integers(0, 3, 9).tolist(), sorted(random.choice(9, 5, replace=False))) for _ in range(12)]

    links = linked(paths)

    reached = set(range(1 + int(links.node_E.max()))) - set(links.child_E.tolist())
    for node, child in zip(links.node_E.tolist(), links.child_E.tolist(), strict=True):
        assert node in reached
        reached.add(child)
    children = links.child_E[links.child_E != END]
    assert len(set(children.tolist())) == children.size


def test_links_of_one_rollout_given_its_entries() -> None:
    """The short way for evidence: the same links, cut where no entry was taken."""
    whole = linked([path([2, 0, 1], [0, 1, 2], success=False)])

    short = chain_links([2, 0, 1], success=0.0)
    cut = chain_links([2, -1, 1], success=None, skipped=[0.1, 0.2, 0.3])

    for name in ("node_E", "entry_E", "child_E", "value_E", "skipped_E"):
        np.testing.assert_array_equal(getattr(short, name), getattr(whole, name))
    assert triples(cut) == {(0, 2, 1)}
    assert cut.skipped_E.tolist() == [0.1]
