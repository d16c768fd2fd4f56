"""The ranking of generators, by hand."""

import pytest

from sparsejax.contrib.sara import vlhi


def test_by_hand():
    assert vlhi([10.0, 20.0, 15.0], [0.1, 0.1, 0.2]).tolist() == [1.0, 0.0, 1.5]
    assert vlhi([7.0, 7.0], [0.3, 0.1]).tolist() == [1.0, 0.0]  # a column of equal values
    assert vlhi([7.0], [0.3]).tolist() == [0.0]


@pytest.mark.parametrize(
    ("fid", "clip", "match"),
    [
        ([1.0, 2.0], [1.0], "got shapes"),
        ([], [], "got shapes"),
        (1.0, 1.0, "got shapes"),
        ([1.0, float("nan")], [0.1, 0.2], "finite"),
    ],
)
def test_mistakes(fid, clip, match):
    with pytest.raises(ValueError, match=match):
        vlhi(fid, clip)
