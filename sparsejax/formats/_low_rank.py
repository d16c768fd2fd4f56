"""Matrices in two factors, and sums of a frozen and a trainable matrix."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._arguments import checked
from .._arrays import wide_dtype
from .._tree import register
from ._array import Matrix
from ._validate import need_floats


@register
@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Matrix):
    r"""A low-rank matrix as a product of two factors: `W = A B`, `x @ W = (x A) B`.

    Args:
      a: `(stacked..., K, r)`.
      b: `(stacked..., r, N)`.

    Raises:
      ValueError: If the factors do not fit.

    Reference:
      Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021 (arXiv 2106.09685).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.LowRank(jnp.ones((4, 1)), jnp.arange(3.0)[None])
      >>> w, (jnp.ones(4) @ w).tolist()
      (LowRank(rank=1, shape=(4, 3), dtype=float32), [0.0, 4.0, 8.0])
    """

    a: Any
    b: Any

    def __post_init__(self):
        a, b = (getattr(x, "shape", None) for x in (self.a, self.b))
        # JAX and optax rebuild trees with other leaves: no arrays, norms, factors of moments.
        if a is None or b is None or min(len(a), len(b)) < 2:
            return
        if len(a) != len(b) or a[:-2] != b[:-2] or a[-1] != b[-2]:
            raise ValueError(
                f"LowRank(a, b) takes a (stacked..., K, r) and b (stacked..., r, N), got {a} "
                f"and {b}."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """`(stacked..., K, N)`."""
        return (*self.a.shape[:-1], *self.b.shape[-1:])

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the product of the factors."""
        return jnp.promote_types(self.a.dtype, self.b.dtype)

    @property
    def rank(self) -> int:
        """r, the number of columns of A."""
        return self.a.shape[-1]

    def validate(self) -> None:
        """Raises ValueError unless the factors are arrays of floats that fit each other."""
        need_floats(self, "a", 2)
        need_floats(self, "b", 2)

    @property
    def label(self) -> str:
        """ "rank r"."""
        return f"rank {self.rank}"

    def todense(self) -> Float[Array, "... k n"]:
        """`A B`, summed in at least float32."""
        wide = wide_dtype(self)
        return jnp.matmul(self.a, self.b, preferred_element_type=wide).astype(self.dtype)

    def _repr(self) -> str:
        return f"rank={self.rank}, shape={self.shape}, dtype={self.dtype}"


@register
@dataclass(frozen=True, eq=False, repr=False)
class Sum(Matrix):
    r"""A frozen matrix and a trainable one: `x @ W = x @ frozen + x @ trainable`.

    A low-rank, sparse or block-sparse adapter of a dense or compressed weight. No gradient reaches
    the frozen part; `sj.formats.trainable` marks the trained leaves for an optimizer.

    Args:
      frozen: An array or matrix of any format, `(stacked..., K, N)`.
      trainable: An array or matrix of any format, of the same shape.

    Raises:
      ValueError: If the shapes differ.

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> adapter = sj.formats.LowRank(jnp.ones((4, 1)), jnp.zeros((1, 3)))
      >>> w = sj.formats.Sum(jnp.ones((4, 3)), adapter)
      >>> (jnp.ones(4) @ w).tolist()
      [4.0, 4.0, 4.0]
      >>> grads = jax.grad(lambda w: (jnp.ones(4) @ w).sum())(w)
      >>> grads.frozen.sum().item(), grads.trainable.b.tolist()
      (0.0, [[4.0, 4.0, 4.0]])
    """

    frozen: Any
    trainable: Any

    def __post_init__(self):
        a, b = (getattr(x, "shape", None) for x in (self.frozen, self.trainable))
        if a is None or b is None or min(len(a), len(b)) < 2:  # as for `LowRank`
            return
        if a != b:
            raise ValueError(f"Sum: frozen {a} and trainable {b} differ in shape.")

    @property
    def shape(self) -> tuple[int, ...]:
        """`(stacked..., K, N)`."""
        return tuple(self.frozen.shape)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the sum."""
        return jnp.promote_types(self.frozen.dtype, self.trainable.dtype)

    def validate(self) -> None:
        """Raises ValueError unless both parts are valid and the trainable one is of floats."""
        for name in ("frozen", "trainable"):
            part = getattr(self, name)
            part.validate() if isinstance(part, Matrix) else need_floats(self, name, 2)

    def for_inference(self) -> "Sum":
        """Both parts without what only their gradients read."""
        parts = (self.frozen, self.trainable)
        return Sum(*(x.for_inference() if isinstance(x, Matrix) else x for x in parts))

    @property
    def label(self) -> str:
        """The formats of both."""
        return " + ".join(map(_label, (self.frozen, self.trainable)))

    def todense(self) -> Float[Array, "... k n"]:
        """The sum as an array."""
        frozen = jax.lax.stop_gradient(_dense(self.frozen))
        return frozen + _dense(self.trainable)

    def _repr(self) -> str:
        return f"{self.label}, shape={self.shape}, dtype={self.dtype}"


@checked()
def trainable(tree: PyTree) -> PyTree:
    r"""The trained leaves of a tree in which leaves outside of any `Sum` are frozen.

    Args:
      tree: Parameters with `Sum` matrices.

    Returns:
      A tree of the same structure: True in the trainable part of each `Sum`, False elsewhere. For
      `optax.masked`, `optax.partition` or `equinox.partition`.

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> adapter = sj.formats.LowRank(jnp.ones((4, 1)), jnp.zeros((1, 3)))
      >>> params = {"kernel": sj.formats.Sum(jnp.ones((4, 3)), adapter), "bias": jnp.ones(3)}
      >>> jax.tree.leaves(sj.formats.trainable(params))
      [False, False, True, True]
    """

    def one(x: Any) -> Any:
        none = jax.tree.map(lambda _: False, x)
        if not isinstance(x, Sum):
            return none
        return Sum(none.frozen, jax.tree.map(lambda _: True, x.trainable))

    return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, Sum))


def _dense(w: Any) -> Any:
    return w.todense() if isinstance(w, Matrix) else w


def _label(w: Any) -> str:
    return w.label if isinstance(w, Matrix) else "dense"
