"""A kernel seen as a matrix."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.patterns._layout import matrix_view

CASES = [
    ((6, 4), None, 0, (6, 4)),
    ((6, 4), 1, 0, (4, 6)),
    ((6, 4), -1, 0, (4, 6)),
    ((3, 3, 8, 5), None, 0, (72, 5)),
    ((8, 2, 4), 0, 0, (8, 8)),
    ((2, 4, 8), (0, 1), 0, (8, 8)),
    ((3, 6, 4), None, 1, (3, 6, 4)),
    ((3, 6, 4), 2, 1, (3, 4, 6)),
    ((2, 3, 3, 8, 5), None, 1, (2, 72, 5)),
    ((2, 8, 2, 4), 1, 1, (2, 8, 8)),
]


@pytest.mark.parametrize("shape, axis, stacked, matrix", CASES)
def test_view_and_back(shape, axis, stacked, matrix):
    view = matrix_view(shape, axis, stacked)
    x = jnp.arange(np.prod(shape)).reshape(shape)
    assert view.matrix_shape == matrix and view.to_matrix(x).shape == matrix
    np.testing.assert_array_equal(view.from_matrix(view.to_matrix(x)), x)


def test_the_product_with_the_view_is_the_contraction():
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(2, 4, 8)), rng.normal(size=(5, 2, 4))
    matrix = matrix_view(w.shape, (0, 1)).to_matrix(jnp.asarray(w))
    expected = np.einsum("bhd,hdo->bo", x, w)
    np.testing.assert_allclose(x.reshape(5, 8) @ np.asarray(matrix), expected, rtol=1e-5)


def test_a_convolution_has_input_channels_innermost():
    w = jnp.arange(3 * 3 * 4 * 2).reshape(3, 3, 4, 2)
    matrix = matrix_view(w.shape).to_matrix(w)
    np.testing.assert_array_equal(matrix[4:8], w[0, 1])


@pytest.mark.parametrize(
    "shape, axis, stacked, message",
    [
        ((8, 2, 4), None, 0, r"axis=0 .*axis=\(0, 1\).*stacked=1"),
        ((8,), None, 0, "does not say|is no kernel"),
        ((8, 4), 2, 0, "not an axis"),
        ((8, 4), (0, 0), 0, "names an axis twice"),
        ((8, 4, 2), 0, 1, "one of the 1 stacked"),
        ((8, 4), None, 2, "leaves no matrix"),
        ((8, 4), (), 0, "not an axis"),
    ],
)
def test_bad_axes(shape, axis, stacked, message):
    with pytest.raises(ValueError, match=message):
        matrix_view(shape, axis, stacked)
