"""Each bad value of each argument of the public API raises an error that names the argument."""

import functools
import importlib
import inspect

import jaxtyping
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from ..test_face import ROOMS
from ._left import DOCUMENTED, PASSED_ON
from ._values import fault

TABLES = ["core", "training", "sae", "contrib"]
# Public names that need no row: what a call returns, or what is passed on as it is.
WITHOUT = {
    "results, made by the library": """
        BanditResult LinearBandit ConcomitantFit DAGFit EdgeScores ActiveMTL MomentMechanism
        PrivacySpent PrivateFit PrivateIHTFit Preconditioner RandomSupportFit Prompt SaRAState Score
        ScoredResult SearchComparison SearchResult SearchedNetwork MembershipFeatures
        UnlearningReport Unmixing UnmixingErrors UpdateOverlap UpdatePartition UpdateSparsity
        Reliability Progress Advice Finding Report Taxonomy Solution Result Rearranged Plan
        PlannedLeaf ActiveSet ChannelGraph Entries LinearLayer Layout Implementation Counts
        Trajectory Corrected Activity Beams Choice Robustness Routed FactorState AdaptiveFactor
        PerplexitySparsity ActivationLaw DecoderFlops IsoFlopsRow QuestCache ScalingLaw TokenCache
        Tolerance Context LinearState AttentionState BlockState AttentionGradients Unlearnable
        PerturbationReport SparseJEPA Blocks DatasetScore Hits Pairs Retriever""",
    "base classes, without arguments": """
        Matrix SparseArray Pattern Selector NonZero Penalty SparseAttention Activation Loss ReLU
        Gated""",
    "types": "Allocation",
    "pytrees, rebuilt with whatever JAX puts at their leaves": """
        LowRank Adapter Sum Transposed Threshold TopP Masks InputGate ActivationGate NeuronGate
        FlexPrefill KeyBlocks Stripes SAE AbsTopK AnnealedP AuxK GateAuxiliary GradientTopK JumpReLU
        L0 L1 MatchingPursuit Nested NeuronTopK NormMatching PreActivation Reconstruction TargetL0
        TopAFA""",
    "formats, checked where they are multiplied, loaded and made by fromdense": """
        BitmaskArray BlockArray NMArray Skipping TensorCoreArray""",
    "modules, whose arguments flax.nnx checks": """
        DartsCell Bert Llama MobileNet BlockFFN FusedLayer FusedLinears FusedMLP ReLURouter
        RotatedNorm TopKMLP SparseKernel SparseLinear NormAwareAttention NormAwareBlock LoRAKernel
        SpladeEncoder""",
    "no arguments": "advice_markdown minilm",
    "registration of the user's own class or function": "linen_compressed",
    "second names": "sr_ste",
    "needs files, a mesh, SciPy or minutes": """
        bert_from_safetensors llama save_llama shard_llama smollm2 shard_columns from_sparse
        tune""",
}  # fmt: skip


@functools.cache
def rows(table):
    return importlib.import_module(f"{__package__}._{table}").ROWS


@pytest.fixture(autouse=True, scope="module")
def annotations_unchecked():
    """As for a user: without beartype, which checks annotations in the other tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def check(table, examples):
    cases = functools.cache(lambda at: rows(table)[at].cases() or [None])

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.integers(0, len(rows(table)) - 1), st.data())
    def named(at, data):
        if case := data.draw(st.sampled_from(cases(at))):
            row, (argument, label, value) = rows(table)[at], case
            found = fault(row, argument, label, value)
            assert found is None, f"{row.name}({argument}={label}): {found}"

    named()


@pytest.mark.whole
@pytest.mark.parametrize("table", TABLES)
def test_bad_arguments_are_named(table):
    check(table, 150)


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_every_bad_argument_is_named(table):
    found = [
        f"{row.name}({argument}={label}): {wrong}"
        for row in rows(table)
        for argument, label, value in row.cases()
        if (wrong := fault(row, argument, label, value))
    ]
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_every_exception_is_needed():
    needed = {
        (f"{row.name}.{argument}", label)
        for table in TABLES
        for row in rows(table)
        for argument, label, value in row.listed_cases()
        if fault(row, argument, label, value)
    }
    listed = {
        (argument, label)
        for table in (DOCUMENTED, PASSED_ON)
        for by_name in table.values()
        for argument, labels in by_name.items()
        for label in labels.split(", ")
    }
    assert listed - needed == set()


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_the_valid_calls_are_valid(table):
    for row in rows(table):
        row.function(**row.arguments)


def test_every_public_callable_has_a_row():
    tried = {row.name for table in TABLES for row in rows(table)}
    without = {name for names in WITHOUT.values() for name in names.split()}
    public = {
        name
        for room in ROOMS
        for module in [importlib.import_module(f"sparsejax.{room}")]
        for name in module.__all__
        if callable(getattr(module, name)) and not inspect.ismodule(getattr(module, name))
    }
    assert public - tried - without == set()
    assert (tried & without, without - public) == (set(), set())
