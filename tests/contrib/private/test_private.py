"""Private regression: noise against dp-accounting, sensitivities by search, audits, bad input."""

import math
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from sparsejax.contrib import private
from sparsejax.contrib.private._sampling import below, from_words, lie_threshold, normal
from sparsejax.solve import Result

KEY = jax.random.key(5)


@pytest.mark.parametrize(
    "epsilon, delta, sigma",
    [
        (0.1, 1e-6, 36.3046904),
        (0.5, 1e-5, 7.0318267),
        (1.0, 1e-5, 3.7306316),
        (4.0, 1e-8, 1.3955827),
    ],
)
def test_gaussian_noise_is_the_published_and_that_of_dp_accounting(epsilon, delta, sigma):
    found = private.gaussian_sigma(1.0, epsilon, delta)
    assert found == pytest.approx(sigma, rel=1e-7)
    assert private.gaussian_delta(epsilon, 1 / found) <= delta
    assert private.gaussian_delta(epsilon, 1 / (found * (1 - 1e-6))) > delta
    pytest.importorskip("dp_accounting")
    other = private.gaussian_sigma(3.0, epsilon, delta, method="dp-accounting")
    assert 3 * found == pytest.approx(other, rel=1e-5)


def test_two_messages_compose_as_dp_accounting_composes():
    accounting = pytest.importorskip("dp_accounting")
    how = private.moment_mechanism(6, 1000, 1.0, 1e-6, radius=2.0, bound_x=1.0, bound_y=1.5)
    multipliers = [how.second_sigma / (2**0.5 * 4), how.cross_sigma / (2 * 2 * 1.5)]
    accountant = accounting.pld.PLDAccountant()
    for multiplier in multipliers:
        accountant.compose(accounting.GaussianDpEvent(multiplier))
    assert accountant.get_epsilon(1e-6) == pytest.approx(1.0, rel=2e-3)
    total = math.hypot(*(1 / m for m in multipliers))
    assert private.gaussian_delta(1.0, total) == pytest.approx(1e-6, rel=1e-3)
    assert how.spent.mu == pytest.approx(total, rel=1e-4)


def test_delta_against_the_integral():
    for epsilon, mu in ((0.3, 0.5), (1.0, 1.0), (3.0, 2.0)):
        z = np.linspace(-12, 12 + mu, 400_001)
        gain = norm.pdf(z, mu) - math.exp(epsilon) * norm.pdf(z)
        integral = np.maximum(gain, 0).sum() * (z[1] - z[0])
        assert private.gaussian_delta(epsilon, mu) == pytest.approx(integral, rel=1e-6)
    assert private.gaussian_delta(1.0, 0.0) == 0 and private.gaussian_delta(0.0, 1e-9) >= 0


def noiseless(how):
    return how._replace(second_sigma=0.0, cross_sigma=0.0)


@pytest.mark.parametrize("d, clip", [(1, "both"), (3, "both"), (3, "entries"), (3, "l2")])
def test_no_pair_of_records_exceeds_the_sensitivities(d, clip):
    """What is sent without noise, for extreme and for wild records, clipped and not."""
    how = private.moment_mechanism(
        d, 1000, 1.0, 1e-6, radius=1.5, bound_x=0.7, bound_y=2.0, clip=clip
    )
    scale = 1 / (how.spent.mu * 0.5**0.5)
    wild = 10.0 ** jax.random.randint(KEY, (200, 1), -3, 12) * jax.random.normal(KEY, (200, d))
    corners = jnp.array(np.stack(np.meshgrid(*[[-9.0, 0.0, 9.0]] * d), -1).reshape(-1, d))
    bad = jnp.full((3, d), jnp.array([[jnp.nan], [jnp.inf], [-jnp.inf]]))
    x = jnp.concatenate([wild, corners, bad])
    y = jnp.where(jnp.arange(len(x)) % 2, 50.0, -50.0)
    x, y = jnp.concatenate([x, x]), jnp.concatenate([y, -y])
    send = jax.jit(jax.vmap(lambda x, y: private.nldp_message(x, y, noiseless(how), key=KEY)))
    for sent, sigma in zip(send(x, y), (how.second_sigma, how.cross_sigma)):
        sent = np.asarray(sent, np.float64)
        assert np.isfinite(sent).all()
        apart = np.linalg.norm(sent[:, None] - sent[None], axis=-1).max()
        claimed = sigma / scale
        assert 0.55 * claimed <= apart <= claimed  # covered, and nearly attained


@pytest.mark.slow
def test_the_claimed_epsilon_survives_an_audit_and_a_smaller_noise_does_not():
    """Likelihood ratios of two extreme users, over both messages."""
    how = private.moment_mechanism(2, 100, 2.0, 1e-3, radius=1.0, bound_x=1.0, bound_y=1.0)
    users = (jnp.array([1.0, 0.0]), 1.0), (jnp.array([0.0, 1.0]), 1.0)
    plain = [private.nldp_message(*u, noiseless(how), key=KEY) for u in users]

    def epsilon(how, n=200_000):
        send = jax.jit(
            jax.vmap(
                lambda key, x, y: private.nldp_message(x, y, how, key=key), in_axes=(0, None, None)
            )
        )
        scores = []
        for i, user in enumerate(users):
            sent = send(jax.random.split(jax.random.fold_in(KEY, i), n), *user)
            sigmas = how.second_sigma, how.cross_sigma
            scores.append(sum(m @ (a - b) / s**2 for m, a, b, s in zip(sent, *plain, sigmas)))
        return private.privacy_audit(*scores, delta=1e-3)

    claimed = epsilon(how)
    assert 0.3 < claimed <= 2.0
    halved = how._replace(second_sigma=how.second_sigma / 4, cross_sigma=how.cross_sigma / 4)
    assert epsilon(halved) > 2.0


def test_audit_of_the_half_sphere_reaches_its_epsilon():
    """Pure: between v and -v at full length the bound is attained, and never passed."""
    v, epsilon = jnp.array([3.0, 0.0]), 1.0
    said = jax.jit(
        jax.vmap(lambda k, v: private.l2_randomizer(v, 3.0, epsilon, key=k), in_axes=(0, None))
    )
    one, other = (
        said(jax.random.split(jax.random.key(i), 100_000), s * v) for i, s in ((0, 1), (1, -1))
    )
    found = private.privacy_audit(one[:, 0] > 0, other[:, 0] > 0)
    assert 0.95 < found <= epsilon
    sizes = np.linalg.norm(one, axis=1)
    np.testing.assert_allclose(sizes, 10.1973902, rtol=1e-5)


@pytest.mark.parametrize(
    "d, radius", [(1, 6.4918602), (2, 10.1973902), (10, 25.09514), (500, 181.8431539)]
)
def test_half_sphere_has_the_published_radius_and_the_right_mean(d, radius):
    v = jnp.zeros(d).at[0].set(1.2)
    keys = jax.random.split(KEY, 20_000 if d <= 10 else 200)
    said = jax.jit(jax.vmap(lambda k: private.l2_randomizer(v, 3.0, 1.0, key=k)))(keys)
    np.testing.assert_allclose(np.linalg.norm(said, axis=1), radius, rtol=1e-5)
    error = np.abs(said.mean(0) - v).max()
    assert error < 5 * radius / (d * len(keys)) ** 0.5
    zero = jax.jit(jax.vmap(lambda k: private.l2_randomizer(0 * v, 3.0, 1.0, key=k)))(keys)
    assert np.abs(zero.mean(0)).max() < 5 * radius / (d * len(keys)) ** 0.5


@pytest.mark.slow
def test_users_and_messages_have_noise_of_their_own():
    how = private.moment_mechanism(3, 100, 1.0, 1e-6, bound_y=1.0)
    keys = jax.random.split(KEY, 5000)
    second, cross = jax.vmap(lambda k: private.nldp_message(jnp.zeros(3), 0.0, how, key=k))(keys)
    np.testing.assert_allclose(second.std(0), how.second_sigma, rtol=0.05)
    np.testing.assert_allclose(cross.std(0), how.cross_sigma, rtol=0.05)
    both = np.corrcoef(np.concatenate([second, cross], 1).T) - np.eye(9)
    assert np.abs(both).max() < 0.08
    assert np.abs(np.corrcoef(second[:-1, 0], second[1:, 0])[0, 1]) < 0.08


@pytest.mark.slow
def test_without_noise_it_is_thresholded_least_squares():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2500, 4)).clip(-2, 2)
    y = (X @ [0.5, 0.0, -0.4, 0.0] + 0.1 * rng.normal(size=2500)).clip(-2, 2)
    options = {"epsilon": 1e7, "delta": 1e-6, "radius": 9.0, "bound_x": 2.0, "bound_y": 2.0}
    found = private.nldp_regression(X, y, key=KEY, strength=0.05, **options)
    ours = found.value
    exact = np.linalg.solve(X.T @ X, X.T @ y)
    np.testing.assert_allclose(ours.raw, exact, atol=0.01)
    expected = np.sign(exact) * np.maximum(np.abs(exact) - 0.05, 0)
    np.testing.assert_allclose(private.soft_thresholded_ols(X, y, 0.05), expected, atol=1e-5)
    assert found.converged and (ours.coefficients[jnp.array([1, 3])] == 0).all()
    split = private.nldp_regression(X, y, key=KEY, strength=0.05, split="users", **options)
    np.testing.assert_allclose(split.value.raw, exact, atol=0.1)
    public = private.nldp_regression(
        X, y, key=KEY, strength=0.05, public=X[:50] * 0 + X[50:100], **options
    )
    assert public.converged and public.value.coefficients.shape == (4,)


@pytest.mark.slow
def test_too_few_users_are_reported_and_floors_work():
    X, y = jax.random.normal(KEY, (50, 5)), jnp.zeros(50)
    loud = {"key": KEY, "epsilon": 1.0, "delta": 1e-6, "out_of_range": "clip"}
    found = private.nldp_regression(X, y, throw=False, **loud)
    assert found.result == Result.INDEFINITE and not found.value.coefficients.any()
    with pytest.raises(RuntimeError, match="nldp_regression: a matrix is not positive definite"):
        private.nldp_regression(X, y, **loud)
    traced = jax.jit(lambda y: private.nldp_regression(X, y, **loud).result)(y)
    assert traced == Result.INDEFINITE
    found = private.nldp_regression(X, y, eig_floor=1.0, **loud)
    raw = found.value.raw
    assert found.result == Result.INDEFINITE and jnp.isfinite(raw).all() and raw.any()
    for n, d in ((1, 1), (1, 3)):
        found = private.nldp_regression(X[:n, :d], y[:n], throw=False, **loud)
        assert jnp.isfinite(found.value.coefficients).all()
        iht = private.ldp_iht(
            X[:n, :d], y[:n], key=KEY, k=1, epsilon=1.0, bound_x=1.0, bound_y=1.0, rounds=1,
            out_of_range="clip",
        ).value  # fmt: skip
        assert jnp.isfinite(iht.coefficients).all() and jnp.sum(iht.coefficients != 0) <= 1


@pytest.mark.slow
def test_private_thresholding_with_much_budget_is_plain_thresholding():
    """Against a NumPy loop on the same groups; the randomiser's noise averages out."""
    rng = np.random.default_rng(2)
    X = rng.uniform(-1, 1, size=(400_000, 4))
    y = X @ np.array([0.0, 0.6, 0.0, 0.0])
    found = private.ldp_iht(
        X, y, key=KEY, k=1, epsilon=20.0, bound_x=1.0, bound_y=1.0, rounds=4, step=2.0
    )
    fit = found.value
    assert found.converged and found.stats["n_iter"] == 4
    theta, groups = np.zeros(4), np.split(np.arange(400_000), 4)
    for group, iterate in zip(groups, fit.history):
        theta = theta - 2.0 * (X[group].T @ (X[group] @ theta - y[group])) / len(group)
        theta *= np.abs(theta) == np.abs(theta).max()
        np.testing.assert_allclose(iterate, theta, atol=0.15)
    assert fit.radius == 2 * (1 + 1) and fit.spent == private.PrivacySpent(20.0, 0.0)


@pytest.mark.parametrize(
    "x", [[jnp.nan, 1.0], [jnp.inf, 1.0], [1e38, 1e38], [0.0, 0.0], [1e-38, 0.0]]
)
def test_clipping_is_total(x):
    short = private.clip_l2(jnp.array(x), 2.0)
    assert jnp.isfinite(short).all() and jnp.linalg.norm(short) <= 2 * (1 + 1e-5)
    assert (jnp.abs(private.clip_entries(jnp.array(x), 2.0)) <= 2).all()
    assert private.clip_l2(jnp.array([3.0, 4.0], jnp.bfloat16), 1.0).dtype == jnp.float32
    np.testing.assert_array_equal(
        private.clip_l2(jnp.array([0.3, 0.4]), 1.0), jnp.array([0.3, 0.4])
    )


@pytest.mark.slow
def test_data_beyond_the_bounds_are_refused_unless_clipping_is_asked_for():
    X, y = jnp.ones((20, 3)), jnp.ones(20)
    bounds = {"epsilon": 1.0, "delta": 1e-6, "radius": 2.0, "bound_x": 1.0, "bound_y": 1.0}
    iht = {"k": 1, "epsilon": 1.0, "bound_x": 1.0, "bound_y": 1.0}
    far, loud = X.at[7, 1].set(5.0), y.at[7].set(-1.5)
    for solver, options in ((private.nldp_regression, bounds), (private.ldp_iht, iht)):
        for rows, text in (((far, y), "radius|bound_x"), ((X, loud), "bound_y")):
            with pytest.raises(ValueError, match=text):
                solver(*rows, key=KEY, **options)
        with pytest.raises(ValueError, match="out_of_range"):
            solver(X, y, key=KEY, out_of_range="keep", **options)
    clipped = private.ldp_iht(far, loud, key=KEY, out_of_range="clip", **iht).value
    same = private.ldp_iht(X, jnp.clip(loud, -1, 1), key=KEY, **iht).value
    np.testing.assert_array_equal(clipped.coefficients, same.coefficients)
    how = private.moment_mechanism(3, 20, 1.0, 1e-6, radius=2.0, bound_x=1.0, bound_y=1.0)
    with pytest.raises(ValueError, match="radius"):
        private.nldp_message(far[7], 1.0, how, key=KEY)
    private.nldp_message(far[7], 1.0, how, key=KEY, out_of_range="clip")
    long = how._replace(clip="entries", second_sigma=None)  # only entries count
    private.nldp_message(X[0], 1.0, long._replace(radius=0.1), key=KEY)


def test_noise_fits_what_is_clipped_and_is_a_number():
    """Lengths bound by 5 and entries by 1: without clipping the entries 5 is what counts."""
    options = {"radius": 5.0, "bound_x": 1.0, "bound_y": 1.0, "accounting": "paper"}
    how = private.moment_mechanism(4, 100, 1.0, 1e-6, clip="l2", **options)
    least = private.gaussian_sigma(2 * 5.0, 0.5, 5e-7, "classic")
    assert how.cross_sigma >= least
    for size in (1e-25, 1e25):  # noise of 1e-50 or 1e50 is 0 or infinite in float32
        how = private.moment_mechanism(2, 9, 1.0, 1e-6, radius=size, bound_x=size, bound_y=size)
        with pytest.raises(ValueError, match="rescale"):
            private.nldp_message(jnp.zeros(2), 0.0, how, key=KEY)
        with pytest.raises(ValueError, match="rescale"):
            private.l2_randomizer(jnp.zeros(2), size**2, 1.0, key=KEY)


@pytest.mark.slow
def test_what_would_break_the_promise_is_refused():
    X, y = jnp.ones((20, 3)), jnp.ones(20)

    def call(X=X, y=y, **options):
        options = {"epsilon": 1.0, "delta": 1e-6} | options
        return private.nldp_regression(X, y, key=KEY, **options)

    iht = lambda X=X, y=y, **o: private.ldp_iht(  # noqa: E731
        X, y, key=KEY, **({"k": 1, "epsilon": 1.0, "bound_x": 1.0, "bound_y": 1.0} | o)
    )
    for f in (call, iht):
        for bad in (jnp.nan, jnp.inf):
            with pytest.raises(ValueError, match="NaN or infinity"):
                f(X=X.at[0, 0].set(bad))
            with pytest.raises(ValueError, match="NaN or infinity"):
                f(y=y.at[0].set(bad))
        for epsilon in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match="epsilon"):
                f(epsilon=epsilon)
        with pytest.raises(ValueError, match="bound_y"):
            f(bound_y=0.0)
        with pytest.raises(ValueError, match="shape"):
            f(y=y[:4])
    for options, text in (
        ({"delta": 0.0}, "delta"), ({"delta": 1.0}, "delta"), ({"radius": -1.0}, "radius"),
        ({"clip": "some"}, "clip"), ({"accounting": "none"}, "accounting"),
        ({"split": "x"}, "split"),
        ({"share": 1.0}, "share"), ({"epsilon": 3.0, "accounting": "paper"}, "epsilon 1"),
        ({"strength": -1.0}, "strength"), ({"public": jnp.ones((5, 2))}, "public"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            call(**options)
    for options, text in (({"k": 4}, "kept"), ({"rounds": 21}, "rounds"), ({"step": 0.0}, "step")):
        with pytest.raises(ValueError, match=text):
            iht(**options)
    for v in ([3.0, 4.0], [jnp.nan, 0.0], [jnp.inf, 0.0]):
        with pytest.raises(ValueError, match="clip it first"):
            private.l2_randomizer(jnp.array(v), 1.0, 1.0, key=KEY)
    long = jax.jit(lambda v: private.l2_randomizer(v, 1.0, 1.0, key=KEY))(jnp.array([3.0, 4.0]))
    same = private.l2_randomizer(jnp.array([0.6, 0.8]), 1.0, 1.0, key=KEY)
    np.testing.assert_allclose(long, same, rtol=1e-4)
    users = private.moment_mechanism(3, 20, 1.0, 1e-6, split="users")
    with pytest.raises(ValueError, match="one message"):
        private.nldp_message(X[0], 1.0, users, key=KEY)
    with pytest.raises(ValueError, match="classic"):
        private.gaussian_sigma(1.0, 2.0, 1e-6, method="classic")
    with pytest.raises(ValueError, match="scores"):
        private.privacy_audit(np.ones(2), np.ones(1))


def test_rare_decisions_have_their_exact_probability():
    """A float32 uniform never lies at epsilon 20, where the share of lies is 2.06e-9."""
    for epsilon in (1e-9, 1.0, 20.0, 44.0, 80.0):
        with localcontext(prec=60):
            assert 0 <= lie_threshold(epsilon) - 2**128 / (1 + Decimal(epsilon).exp()) < 1
    for epsilon in (100.0, 1e7, 1e300):  # never 0: the guarantee holds above float32's range too
        assert lie_threshold(epsilon) == 1
    cut = lie_threshold(20.0)
    words = lambda n: jnp.array([n >> 32 * i & 0xFFFFFFFF for i in (3, 2, 1, 0)], jnp.uint32)  # noqa: E731
    near = jnp.stack([words(n) for n in (0, cut - 1, cut, cut + 2**64, 2**128 - 1)])
    assert below(near, cut).tolist() == [True, True, False, False, False]
    bits = jax.random.bits(KEY, (200_000, 4), jnp.uint32)
    assert jnp.mean(below(bits, lie_threshold(2.0))) == pytest.approx(
        1 / (1 + math.exp(2)), rel=0.03
    )


def test_a_message_on_the_edge_of_the_half_sphere_has_one_side():
    """Both orders of a vector orthogonal to v are reached with odds of at most e^epsilon."""
    said = jax.jit(
        jax.vmap(lambda k: private.l2_randomizer(jnp.array([0.0, 3.0]), 3.0, 9.0, key=k))
    )
    messages = said(jax.random.split(KEY, 5000))
    assert jnp.isfinite(messages).all() and jnp.all(messages[:, 1] >= 0)


def test_noise_has_its_tails():
    z = normal(KEY, (1_000_001,), jnp.dtype(jnp.float32))
    assert z.shape == (1_000_001,) and abs(z.mean()) < 0.004 and abs(z.std() - 1) < 0.003
    for t in (1.0, 2.0, 3.0, 4.0):
        expected = math.erfc(t / 2**0.5)
        assert jnp.mean(jnp.abs(z) > t) == pytest.approx(expected, rel=5 / (1e6 * expected) ** 0.5)
    far = from_words(jnp.array([[0, 0], [0, 1], [0, 0]], jnp.uint32), jnp.dtype(jnp.float32))
    assert far.max() > 9.4 and jnp.isfinite(far).all()  # erfinv of a float32 uniform ends at 5.4
    with pytest.raises(ValueError, match="1e-15"):
        private.moment_mechanism(3, 20, 1.0, 1e-18)


def test_clipping_is_the_identity_near_zero():
    found = jax.jacobian(lambda x: private.clip_l2(x, 1.0))(jnp.zeros(2))
    np.testing.assert_array_equal(found, np.eye(2))
