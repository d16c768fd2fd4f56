"""Bytes: the numbers of the spec, and real buffers of SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import sparsejax as sj
from sparsejax.reporting import bytes_of


def test_the_numbers_of_the_spec():
    kept = 128 * 128 - round(128 * 128 * 0.9)
    assert bytes_of((128, 128), jnp.float32, "csr", kept=kept) == 13_620
    assert bytes_of((128, 128), jnp.float32, "bitmask", kept=kept) == 8_600
    assert bytes_of((128, 128), jnp.float32, "dense", kept=kept) == 65_536
    assert bytes_of((128, 128), jnp.bfloat16, sj.NM(2, 4)) == 18_432
    assert bytes_of((128, 128), jnp.bfloat16) == 32_768


def test_csr_and_bsr_against_scipy():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(24, 40)).astype(np.float32)
    free = rng.random((24, 40)) < 0.2
    csr = scipy.sparse.csr_array(np.where(free, w, 0))
    assert bytes_of(free, format="csr") == sum(
        x.nbytes for x in (csr.data, csr.indices.astype(np.int32), csr.indptr.astype(np.int32))
    )
    block = sj.Block((8, 4), 0.5)
    mask = np.kron(rng.random((3, 10)) < 0.5, np.ones((8, 4), bool))
    bsr = scipy.sparse.bsr_array(np.where(mask, w, 0), blocksize=(8, 4))
    assert bytes_of(mask, format=block) == sum(
        x.nbytes for x in (bsr.data, bsr.indices.astype(np.int32), bsr.indptr.astype(np.int32))
    )
    assert bytes_of(mask, format=block) == bytes_of((24, 40), format=block, kept=int(mask.sum()))


def test_packed_bits_of_the_bitmask():
    mask = np.random.default_rng(1).random((7, 9)) < 0.3
    assert bytes_of(mask, format="bitmask") == np.packbits(mask).nbytes + 4 * mask.sum()


@pytest.mark.parametrize("n, m, bits", [(1, 4, 2), (2, 4, 2), (4, 8, 3), (8, 16, 4), (1, 6, 3)])
def test_nm_index_bits(n, m, bits):
    slots = 48 * 10 // m * n
    assert bytes_of((48, 10), jnp.float32, sj.NM(n, m)) == 4 * slots + -(-slots * bits // 8)


def test_shapes_beyond_32_bits_and_small_dtypes():
    assert bytes_of((2**17, 2**16), jnp.bfloat16) == 2**34
    assert bytes_of((2**17, 2**16), jnp.bfloat16, "bitmask", kept=2**32 + 1) == 2**33 + 2 + 2**30
    assert bytes_of((16, 16), jnp.int4) == 128


def test_unknown_formats_and_patterns_that_do_not_fit():
    with pytest.raises(ValueError, match=r'"dense", "bitmask", "csr"'):
        bytes_of.__wrapped__((4, 4), jnp.float32, "coo")
    with pytest.raises(ValueError, match="divisible by 4"):
        bytes_of((6, 4), jnp.float32, sj.NM(2, 4))
