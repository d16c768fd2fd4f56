"""A kernel seen as a matrix."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.patterns import layout

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
    view = layout(shape, axis, stacked)
    x = jnp.arange(np.prod(shape)).reshape(shape)
    assert view.matrix_shape == matrix and view.to_matrix(x).shape == matrix
    np.testing.assert_array_equal(view.from_matrix(view.to_matrix(x)), x)


def test_the_product_with_the_view_is_the_contraction():
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(2, 4, 8)), rng.normal(size=(5, 2, 4))
    matrix = layout(w.shape, (0, 1)).to_matrix(jnp.asarray(w))
    expected = np.einsum("bhd,hdo->bo", x, w)
    np.testing.assert_allclose(x.reshape(5, 8) @ np.asarray(matrix), expected, rtol=1e-5)


def test_a_convolution_has_input_channels_innermost():
    w = jnp.arange(3 * 3 * 4 * 2).reshape(3, 3, 4, 2)
    matrix = layout(w.shape).to_matrix(w)
    np.testing.assert_array_equal(matrix[4:8], w[0, 1])


@pytest.mark.parametrize(
    "shape, axis, stacked, message",
    [
        ((8, 2, 4), None, 0, r"axis=0 .*axis=\(0, 1\).*stacked=1"),
        ((8,), None, 0, "is not a kernel"),
        ((8, 4), 2, 0, "not an axis"),
        ((8, 4), (0, 0), 0, "repeats an axis"),
        ((8, 4, 2), 0, 1, "one of the 1 stacked"),
        ((8, 4), None, 2, "leaves no axes"),
        ((8, 4), (), 0, "not an axis"),
    ],
)
def test_bad_axes(shape, axis, stacked, message):
    with pytest.raises(ValueError, match=message):
        _ = layout(shape, axis, stacked).matrix_shape


OUT_IN = [
    ((5, 8), (8, 5), (8, 5)),
    ((5, 8, 3), (24, 5), (8, 5)),
    ((5, 8, 3, 3), (72, 5), (8, 5)),
    ((5, 8, 2, 3, 3), (144, 5), (8, 5)),
]


@pytest.mark.parametrize("shape, matrix, channels", OUT_IN)
def test_output_axes_first(shape, matrix, channels):
    found = layout(shape, order="out_in")
    x = jnp.arange(np.prod(shape)).reshape(shape)
    assert found.matrix_shape == matrix and found.channels == channels
    np.testing.assert_array_equal(found.from_matrix(found.to_matrix(x)), x)
    # The same matrix as the kernel with its axes in the order of Flax.
    flax = jnp.moveaxis(x, (0, 1), (-1, -2))
    np.testing.assert_array_equal(found.to_matrix(x), flax.reshape(matrix))
    stacked = layout((2, *shape), stacked=1, order="out_in")
    assert stacked.matrix_shape == (2, *matrix)


def test_an_unknown_order_raises_when_it_is_needed():
    found = layout((4, 8), order=None)
    assert found.contraction is None and found.slices == 1
    with pytest.raises(ValueError, match=r'layout="out_in".*axis=0 or axis=1'):
        _ = found.matrix_shape
    assert layout((4, 8), axis=1, order=None).matrix_shape == (8, 4)
    with pytest.raises(ValueError, match='"in_out", "out_in" or None'):
        layout.__wrapped__((4, 8), order="io")  # as without the type checks of the tests
