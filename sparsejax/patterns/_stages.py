"""N:M patterns that tighten in stages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from .._arguments import checked
from ._layout import Layout
from ._nm import NM
from ._pattern import Pattern


@checked()
@dataclass(frozen=True)
class Stages(Pattern):
    r"""An N:M pattern that tightens in stages: the structure decay of SdGf.

    At fraction 0 of a schedule everything is kept; with S patterns, fraction i / S is pattern i.

    Args:
      patterns: The N:M patterns in order; the last one is the target.

    Raises:
      ValueError: If no pattern is given, or the patterns differ in axis or stacked.

    Reference:
      Bambhaniya et al., Progressive Gradient Flow for Robust N:M Sparsity Training in
      Transformers, 2024 (arXiv 2402.04744).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> stages = sj.patterns.Stages((sj.NM(3, 4), sj.NM(2, 4), sj.NM(1, 4)))
      >>> w = jnp.array([[4.0], [1.0], [3.0], [2.0]])
      >>> [int(sj.masks.topk(w, stages, c).sum()) for c in (0.0, 1 / 3, 2 / 3, 1.0)]
      [4, 3, 2, 1]
    """

    patterns: tuple[NM, ...]
    free: ClassVar[bool] = False

    def __post_init__(self):
        object.__setattr__(self, "patterns", tuple(self.patterns))
        if not self.patterns or not all(isinstance(p, NM) for p in self.patterns):
            raise ValueError("Stages needs N:M patterns, as in Stages((NM(3, 4), NM(2, 4))).")
        if len({(p.axis, p.stacked) for p in self.patterns}) > 1:
            raise ValueError("the patterns of Stages must share axis and stacked.")

    @property
    def sparsity(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The sparsity of the last pattern."""
        return self.final.sparsity

    @property
    def stacked(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Leading axes that index layers or experts."""
        return self.final.stacked

    @property
    def axis(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The contraction axis or axes."""
        return self.final.axis

    @property
    def label(self) -> str:
        """The patterns in order."""
        return " to ".join(p.label for p in self.patterns)

    @property
    def final(self) -> NM:
        """The last pattern."""
        return self.patterns[-1]

    def units(self, layout: Layout) -> int:
        """Number of entries; raises if a stage does not divide the contraction length."""
        return [p.units(layout) for p in self.patterns][-1]

    def zeros(self, layout: Layout) -> int:
        """Entries that the last pattern sets to zero."""
        return self.final.zeros(layout)

    def select(
        self,
        scores: Float[Array, "..."],
        layout: Layout,
        zeros: int | None = None,
        fraction: ArrayLike = 1.0,
    ) -> Bool[Array, "..."]:
        """The mask of the stage that the fraction has reached."""
        del zeros
        # The last stage reached: a float slightly below i / S is treated as i / S.
        stages = jnp.asarray(fraction, jnp.float32) * len(self.patterns)
        reached = jnp.clip(jnp.floor(stages + 1e-4), 0, len(self.patterns)).astype(jnp.int32)
        # Stages of equal m differ in a number only: one computation for all of them.
        first = {(p.m, p.pad): p for p in reversed(self.patterns)}
        kinds = list(first)
        each = [kinds.index((p.m, p.pad)) for p in self.patterns]
        kind = jnp.asarray([each[0], *each], jnp.int32)[reached]
        kept = jnp.asarray([self.patterns[0].m, *(p.n for p in self.patterns)], jnp.int32)[reached]
        branches = [lambda s, k, p=p: p.select_kept(s, layout, k) for p in first.values()]
        return lax.switch(kind, branches, scores, kept)


@checked(stacked="[0, inf)", stages="[1, inf)")
def nm_stages(
    kind: str,
    n: int,
    m: int,
    *,
    axis: int | Sequence[int] | None = None,
    stacked: int = 0,
    stages: int = 4,
    pad: bool = False,
) -> Stages:
    r"""The stages of SdGf, ending at N:M.

    Stepwise keeps the group length and reduces n: (m-1):m, m/2:m, m/4:m, ..., n:m. Geometric keeps
    the ratio and reduces the group length: n 2^i : m 2^i for i = stages - 1, ..., 0.

    Args:
      kind: "stepwise" or "geometric".
      n: Entries kept of each group at the end.
      m: Length of a group at the end.
      axis: Contraction axis or axes, as for `NM`.
      stacked: Leading axes that index layers, as for `NM`.
      stages: Number of geometric stages.
      pad: Whether the last group is padded, as for `NM`.

    Raises:
      ValueError: If kind is neither or not 1 <= n < m.

    Reference:
      Bambhaniya et al., 2024 (arXiv 2402.04744).

    Example:
      >>> import sparsejax as sj
      >>> [(p.n, p.m) for p in sj.patterns.nm_stages("stepwise", 1, 8).patterns]
      [(7, 8), (4, 8), (2, 8), (1, 8)]
    """
    if not 1 <= n < m:
        raise ValueError(f"nm_stages({kind!r}, {n}, {m}) must end at 1 <= n < m.")
    if kind == "geometric":
        counts = [(n * 2**i, m * 2**i) for i in reversed(range(stages))]
    elif kind == "stepwise":
        halves = [m // 2**i for i in range(1, int(math.log2(m / n)) + 1)]
        counts = [(kept, m) for kept in dict.fromkeys([m - 1, *halves, n])]
    else:
        raise ValueError(f'kind={kind!r} must be "stepwise" or "geometric".')
    return Stages(tuple(NM(*count, axis, stacked, pad) for count in counts))
