"""Every test runs with the shapes and types of the signatures checked, on eight devices."""

import collections
import gc
import os
import pathlib
import zlib

# Tracing makes many small objects; looking for cycles among them took up to a third of the time.
gc.set_threshold(200_000, 20, 1000)

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # Tests compile far more than they compute. The newer emitters of fusions take longer, and
        # there is another way only before JAX 0.11.
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one worker, notebook or run has compiled the next one loads.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent / ".jax_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
# What was tuned on this machine changes no test, and no test changes it; C++ is compiled once.
os.environ["SPARSEJAX_CACHE"] = str(
    pathlib.Path(__file__).parent / ".jax_cache" / f"tuning-{os.getpid()}.json"
)

import jax  # noqa: E402
import jax.monitoring  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# Before anything imports sparsejax, so that every annotated function is checked at run time.
install_import_hook("sparsejax", "beartype.beartype")


# So many rows of each table are quick; every row is run by `make test-slow` where it is not.
ROWS = 2
TIERS = {"slow", "whole", "notebook", "gpu", "tpu", "aot"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks what is slow; notebooks take longest and so come first.

    Slow are the tests and examples of single subjects, and all but `ROWS` rows of each table,
    unless it is marked as `whole`. Names are shuffled by a checksum, so that other tables keep
    other rows, and each the same ones from run to run.
    """
    tables = collections.defaultdict(list)
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if item.nodeid.startswith(("sparsejax/contrib/", "tests/contrib/")):
            item.add_marker(pytest.mark.slow)
        elif "[" in item.nodeid and not marks & TIERS:
            tables[item.nodeid.split("[")[0]].append(item)
    for rows in tables.values():
        rows.sort(key=lambda row: zlib.crc32(row.nodeid.encode()))
        for row in rows[ROWS:]:
            row.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: "test_notebooks" not in item.nodeid)


def pytest_collection_finish():
    """What is imported stays; looking for cycles in it after each module took a second."""
    gc.collect()
    gc.freeze()


_compiled = 0


def _count(event, duration, **about):
    global _compiled
    _compiled += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)


@pytest.fixture(scope="module", autouse=True)
def little_stays_compiled():
    """Free all programs now and then: the more a process holds the longer the next one takes."""
    global _compiled
    yield
    if _compiled > 500:
        jax.clear_caches()
        gc.collect()
        _compiled = 0


def pytest_unconfigure():
    pathlib.Path(os.environ["SPARSEJAX_CACHE"]).unlink(missing_ok=True)
