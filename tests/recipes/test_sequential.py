"""Block by block against pruning by hand, with resuming, stacks, lists and functions."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax import recipes
from sparsejax._tree import named_leaves, pure

X = jax.random.normal(jax.random.key(0), (40, 8)) @ jax.random.normal(jax.random.key(1), (8, 8))
NM = sj.NM(2, 4)


class Network(nnx.Module):
    """The names are not in the order in which the layers run."""

    def __init__(self):
        self.last = nnx.Linear(12, 4, rngs=nnx.Rngs(0))
        self.entry = nnx.Linear(8, 12, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.last(jax.nn.relu(self.entry(x)))


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(8, 12, rngs=rngs)
        self.gate = nnx.Linear(8, 12, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(12, 8, rngs=rngs)

    def __call__(self, x, shift, *, scale):
        up = jax.nn.relu(self.up(x)) * self.gate(x)
        return x + scale * self.down(up) + shift


class Tower(nnx.Module):
    """An entry, three blocks, an exit; `stacked` scans the same parameters."""

    def __init__(self, stacked=False, skip=False):
        self.skip, self.stacked = skip, stacked
        self.entry = nnx.Linear(8, 8, rngs=nnx.Rngs(5))
        layers = [Layer(nnx.Rngs(i)) for i in range(3)]
        if stacked:
            states = [nnx.state(layer) for layer in layers]
            state = jax.tree.map(lambda *x: jnp.stack(x), *states)
            self.layers = nnx.merge(nnx.graphdef(layers[0]), state)
        else:
            self.layers = nnx.List(layers)
        self.exit = nnx.Linear(8, 4, rngs=nnx.Rngs(6))

    def __call__(self, x):
        x, shift = jnp.tanh(self.entry(x)), jnp.mean(x)
        if self.stacked:
            run = nnx.scan(
                lambda x, layer: layer(x, shift, scale=0.5),
                in_axes=(nnx.Carry, 0),
                out_axes=nnx.Carry,
            )
            x = run(x, self.layers)
        else:
            for layer in self.layers:
                x = layer(x, shift, scale=0.5) + (1 if self.skip else 0)
        return self.exit(x)


def alone(w, gram, method, pattern=NM):
    """One kernel with its Gram matrix."""
    tree = {"kernel": w}
    plan = sj.plan(tree, pattern, layout="in_out")
    if method == "sparsegpt":
        return recipes.sparsegpt(tree, {"kernel": gram}, plan)[0]["kernel"]
    scores = sj.masks.magnitude(tree)
    if method == "wanda":
        scores = sj.masks.wanda(tree, {"kernel": gram}, plan)
    return sj.masks.apply_masks(tree, plan.masks(scores))["kernel"]


def by_hand(method):
    """The tower: kernels of a block see the dense block, the next block the pruned one."""
    tower = Tower()
    prune = lambda layer, rows: layer.kernel.set_value(  # noqa: E731
        alone(layer.kernel[...], rows.T @ rows, method)
    )
    shift = jnp.mean(X)
    prune(tower.entry, X)
    x = jnp.tanh(tower.entry(X))
    for layer in tower.layers:
        hidden = jax.nn.relu(layer.up(x)) * layer.gate(x)
        prune(layer.up, x)
        prune(layer.gate, x)
        prune(layer.down, hidden)
        x = layer(x, shift, scale=0.5)
    prune(tower.exit, x)
    return pure(nnx.state(tower, nnx.Param))


def rules(stacked):
    return {"layers/.*kernel": sj.NM(2, 4, stacked=1, axis=1) if stacked else NM, "kernel": NM}


def check(found, expected, stacked=False):
    """Weights as by hand, those of the layers as one stack; zeros where the masks say so."""
    expected, masks = named_leaves(expected), named_leaves(found.masks)
    for name, w in named_leaves(found.params).items():
        where, _, rest = name.partition("/")
        if stacked and where == "layers":
            want = jnp.stack([expected[f"layers/{i}/{rest}"] for i in range(3)])
        else:
            want = expected[name]
        np.testing.assert_allclose(w, want, atol=1e-4, err_msg=name)
        if name.endswith("kernel"):
            np.testing.assert_array_equal(masks[name], w != 0, err_msg=name)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("method", ["sparsegpt", "wanda", "magnitude"])
def test_each_block_sees_the_pruned_ones_before_it(method, stacked):
    model = Tower(stacked)
    plan = sj.plan(model, rules(stacked))
    before = pure(nnx.state(model, nnx.Param))
    found = recipes.sequential_prune(model, [X], plan, method)
    check(found, by_hand(method), stacked)
    assert found.step == (len(plan) if method == "magnitude" else 5)
    after = pure(nnx.state(model, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_magnitudes_need_no_batches():
    model = Tower()
    found = recipes.sequential_prune(model, [], sj.plan(model, NM), "magnitude")
    check(found, by_hand("magnitude"))


@pytest.mark.parametrize("stacked", [False, True])
def test_a_killed_run_resumes_bit_for_bit_or_refuses(stacked):
    model, saved = Tower(stacked), []
    plan = sj.plan(model, rules(stacked))
    run = functools.partial(recipes.sequential_prune, model, [X], plan)
    whole = run(callback=lambda done: saved.append(pickle.dumps(done)))
    assert len(saved) == 5
    for kept in saved[:-1]:
        again = run(resume=pickle.loads(kept))
        jax.tree.map(np.testing.assert_array_equal, again, whole)
    middle = pickle.loads(saved[1])
    assert (
        sum(mask is None for mask in jax.tree.leaves(middle.masks, is_leaf=lambda x: x is None)) > 4
    )
    with pytest.raises(ValueError, match="resume began with batches"):
        recipes.sequential_prune(model, [X + 1], plan, resume=middle)
    with pytest.raises(ValueError, match="resume began with method"):
        recipes.sequential_prune(model, [X], plan, "wanda", resume=middle)
    other = Tower(stacked)
    other.entry.kernel[...] += 1
    with pytest.raises(ValueError, match="resume began with params"):
        recipes.sequential_prune(other, [X], plan, resume=middle)


def test_a_network_without_blocks_is_pruned_kernel_by_kernel():
    model = Network()
    found = recipes.sequential_prune(model, [X], sj.plan(model, NM))
    first = alone(model.entry.kernel[...], X.T @ X, "sparsegpt")
    hidden = jax.nn.relu(X @ first + model.entry.bias[...])
    last = alone(model.last.kernel[...], hidden.T @ hidden, "sparsegpt")
    np.testing.assert_allclose(found.params["entry"]["kernel"], first, atol=1e-4)
    np.testing.assert_allclose(found.params["last"]["kernel"], last, atol=1e-4)


def test_lists_that_are_no_chain_are_not_taken_for_one():
    """Something is added between the layers, so that each is pruned by itself."""
    model = Tower(skip=True)
    plan = sj.plan(model, NM)
    assert recipes.sequential_prune(model, [X], plan, "wanda").step == 3 * 3 + 2
    with pytest.raises(ValueError, match="takes other values than the one before it gives"):
        recipes.sequential_prune(model, [X], plan, blocks="layers")
    with pytest.raises(ValueError, match="no such module"):
        recipes.sequential_prune(model, [X], plan, blocks="decoder")
    with pytest.raises(ValueError, match="neither a list of modules"):
        recipes.sequential_prune(model, [X], plan, blocks="exit")


class Branch(nnx.Module):
    """Its flag changes the stream, not the inputs of its one kernel."""

    def __init__(self, rngs):
        self.up = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x, *, deterministic):
        return x + (self.up(x) if deterministic else 2 * self.up(x))


class Heads(nnx.Module):
    """An exit after each layer, and layers with a scale of their own."""

    def __init__(self, scales=(1.0, 1.0, 1.0)):
        self.scales = scales
        self.outs = nnx.List([nnx.Linear(8, 4, rngs=nnx.Rngs(9 + i)) for i in range(3)])
        self.layers = nnx.List([Layer(nnx.Rngs(i)) for i in range(3)])

    def __call__(self, x):
        found = []
        for layer, out, scale in zip(self.layers, self.outs, self.scales):
            x = layer(x, 0.1, scale=scale)
            found.append(out(x))
        return found, jnp.argmax(x, -1)


def test_what_stands_beside_the_blocks_is_pruned_too():
    model = Heads()
    plan = sj.plan(model, {"kernel": NM})
    found = recipes.sequential_prune(model, [X], plan, "wanda")
    assert found.step == 3 + 3
    assert all(
        int(jnp.sum(w != 0)) == plan[n].kept
        for n, w in named_leaves(found.params).items()
        if n in plan
    )


def test_flags_of_blocks_stay_python():
    """A flag that a layer branches on is no traced value; another flag in a layer is no chain."""

    class Flagged(nnx.Module):
        def __init__(self, flags):
            self.flags = flags
            self.layers = nnx.List([Branch(nnx.Rngs(i)) for i in range(3)])

        def __call__(self, x):
            for layer, flag in zip(self.layers, self.flags):
                x = layer(x, deterministic=flag)
            return x

    for flags, steps in (((True, True, True), 3), ((True, True, False), 3)):
        model = Flagged(flags)
        plan = sj.plan(model, NM)
        found = recipes.sequential_prune(model, [X], plan, "wanda")
        exact = recipes.sequential_prune(model, [X], plan, "wanda", blocks="")
        assert found.step == steps
        jax.tree.map(np.testing.assert_array_equal, found.masks, exact.masks)
    with pytest.raises(ValueError, match="takes other values"):
        recipes.sequential_prune(model, [X], plan, blocks="layers")


def test_blocks_with_other_keywords_are_no_chain():
    model = Heads((1.0, 2.0, 3.0))
    plan = sj.plan(model, {"layers/.*kernel": NM})
    found = recipes.sequential_prune(model, [X], plan, "wanda")
    exact = recipes.sequential_prune(model, [X], plan, "wanda", blocks="")
    assert found.step == 9
    jax.tree.map(np.testing.assert_array_equal, found.masks, exact.masks)


def test_functions_are_blocks():
    tower = Tower()
    params = pure(nnx.state(tower, nnx.Param))
    observe = sj.nn.observe

    def linear(layer, name, x):
        return observe(f"{name}/kernel", x) @ layer["kernel"] + layer.get("bias", 0)

    def layer(i, params, x):
        x, shift = x
        p = params["layers"][i]
        up = jax.nn.relu(linear(p["up"], f"layers/{i}/up", x))
        down = linear(p["down"], f"layers/{i}/down", up * linear(p["gate"], f"layers/{i}/gate", x))
        return x + 0.5 * down + shift, shift

    blocks = [
        lambda params, x: (jnp.tanh(linear(params["entry"], "entry", x)), jnp.mean(x)),
        *(functools.partial(layer, i) for i in range(3)),
        lambda params, x: linear(params["exit"], "exit", x[0]),
    ]
    plan = sj.plan(params, NM, layout="in_out")
    check(recipes.sequential_prune(params, [X], plan, blocks=blocks), by_hand("sparsegpt"))
    with pytest.raises(ValueError, match="exit/kernel did not run"):
        recipes.sequential_prune(params, [X], plan, blocks=blocks[:-1])


@pytest.mark.slow
def test_eight_devices_give_the_same():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    model = Tower()
    plan = sj.plan(model, NM)
    whole = recipes.sequential_prune(model, [X], plan)
    rows = jax.device_put(X, jax.NamedSharding(mesh, jax.P("d")))
    sharded = jax.tree.map(
        lambda x: jax.device_put(
            x, jax.NamedSharding(mesh, jax.P("d") if x.shape[0] % 8 == 0 else jax.P())
        ),
        nnx.state(model),
    )
    nnx.update(model, sharded)
    found = recipes.sequential_prune(model, [rows], plan)
    jax.tree.map(np.testing.assert_array_equal, found.masks, whole.masks)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found.params, whole.params
    )


@pytest.mark.slow
def test_a_decoder_in_bfloat16():
    """All 7 kernels of each layer, scanned or listed, in the dtype of the parameters."""
    config = sj.models.LlamaConfig(
        vocabulary=40, width=16, hidden=32, layers=3, heads=4, key_heads=2, head_size=4
    )
    ids = jax.random.randint(jax.random.key(0), (4, 12), 0, 40)
    for scan in (False, True):
        model = sj.models.Llama(config, scan=scan, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        kind = sj.NM(2, 4, stacked=1, axis=1) if scan else NM
        plan = sj.plan(model, {"layers/.*kernel": kind})
        found = recipes.sequential_prune(model, [ids], plan)
        assert found.step == 3
        for name, x in named_leaves(found.params).items():
            assert x.dtype == jnp.bfloat16, name
            if name in plan:
                assert int((x != 0).sum()) == plan[name].kept, name


def test_what_is_refused():
    model = Network()
    plan = sj.plan(model, NM)
    prune = recipes.sequential_prune
    with pytest.raises(ValueError, match="entry/kernel did not run"):
        prune(model, [jnp.ones((3, 12))], plan, call=lambda m, x: m.last(x))
    other = Network()
    other.entry = nnx.Linear(16, 12, rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match="entry/kernel was planned with shape .* make the plan"):
        prune(model, [X], sj.plan(other, NM))
    with pytest.raises(ValueError, match="no batches"):
        prune(model, [], plan)
    with pytest.raises(ValueError, match="method must be one of sparsegpt"):
        prune(model, [X], plan, "obs")
    with pytest.raises(ValueError, match="has no leaves"):
        prune(model, [X], sj.plan(model, {"kernel": None, "bias": None}))
    with pytest.raises(TypeError, match="must be an NNX module"):
        prune({"kernel": X}, [X], sj.plan({"kernel": X}, NM, layout="in_out"))
    with pytest.raises(ValueError, match="not positive definite|finite"):
        prune(model, [X.at[0, 0].set(jnp.nan)], plan)
    tower = Tower(stacked=True)
    with pytest.raises(ValueError, match="stacked=1"):
        prune(
            tower,
            [X],
            sj.plan(tower, {"layers/up/kernel": sj.Unstructured(0.5)}),
            blocks="layers",
        )
