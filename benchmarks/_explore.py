"""Exploration on the device: cells compiled in many processes, timed one at a time."""
import argparse, fcntl, glob, json, os, subprocess, sys, time, traceback
from functools import partial

T0 = float(os.environ.get("EXPLORE_T0", time.time()))


def cells():
    """name -> spec, in order of priority."""
    out = []
    pats = ((2, 4), (4, 8), (1, 4), (1, 8), (2, 16))
    for nm in pats:
        for rows in (16, 1):
            for parts in (2, 4):
                out.append(dict(kind="cuda", nm=nm, rows=rows, parts=parts))
    for d in (0.5, 0.25, 0.1, 0.05):
        out.append(dict(kind="block", rows=8192, block=128, density=d, clusters=(4, 2), persistent=1))
    for d in (0.5, 0.05):
        for cl in ((2,), ()):
            out.append(dict(kind="block", rows=8192, block=128, density=d, clusters=cl, persistent=1))
        for cl in ((4,), (2,), ()):
            out.append(dict(kind="block", rows=8192, block=128, density=d, clusters=cl, persistent=0))
    for d in (0.5, 0.25, 0.1, 0.05):
        out.append(dict(kind="block", rows=8192, block=64, density=d, clusters=(4, 2), persistent=1))
    out.append(dict(kind="block", rows=8192, block=64, density=0.5, clusters=(4, 2), persistent=0))
    out.append(dict(kind="block", rows=8192, block=64, density=0.5, clusters=(2,), persistent=1))
    for m in (1, 16, 64, 128, 256, 512, 1024, 4096, 8192):
        out.append(dict(kind="cores", rows=m))
    for m in (8192, 4096, 1024, 256):
        out.append(dict(kind="lt", rows=m))
    for nm in pats:
        out.append(dict(kind="cuda", nm=nm, rows=16, parts=1))
        out.append(dict(kind="cuda", nm=nm, rows=16, parts=8))
        out.append(dict(kind="cuda", nm=nm, rows=32, parts=2))
        out.append(dict(kind="cuda", nm=nm, rows=64, parts=2))
    for b in (128, 64):
        for d in (0.5, 0.1):
            out.append(dict(kind="back", rows=8192, block=b, density=d))
    for b in (32, 16):
        for d in (0.25, 0.1, 0.05):
            out.append(dict(kind="block", rows=8192, block=b, density=d))
    for b in (128, 64):
        for d in (0.5, 0.1):
            out.append(dict(kind="block", rows=16, block=b, density=d))
    for t in (1, 16, 256):
        out.append(dict(kind="active", rows=t))
    for i in (1, 3, 4, 7):
        out.append(dict(kind="check", case=i))
    return out


def name_of(c):
    return " ".join(str(v) if k == "kind" else f"{k}={v}" for k, v in c.items())


SIDE = 8192


def build(c):
    """product(x, w), dense(x, full), x shape, make(key) -> w, full_of(w), prepare(w), weights."""
    import jax, jax.numpy as jnp, numpy as np
    import sparsejax as sj
    from sparsejax.kernels.matmul import _cusparselt, _gpu_nm, _gpu_block, _pallas_gpu, _sparse_cores
    from sparsejax.kernels.matmul._finish import How
    how = How(dtype=jnp.bfloat16)
    normal = lambda key, shape: jax.random.normal(key, shape, jnp.bfloat16) / shape[0] ** 0.5
    def nm(key, n, m):
        w = normal(key, (SIDE, SIDE)).reshape(SIDE // m, m, SIDE).astype(jnp.float32)
        return sj.formats.NMArray.fromdense(normal(key, (SIDE, SIDE)), n, m)
    def blocks(key, b, d):
        n = SIDE // b
        kept = max(1, round(d * n))
        scores = jax.random.uniform(key, (n, n))
        rank = scores.argsort(0).argsort(0)
        mask = jnp.repeat(jnp.repeat(rank < kept, b, 0), b, 1)
        big = kept + 8 * int(kept**0.5) + 8
        return sj.formats.BlockArray.fromdense(normal(key, (SIDE, SIDE)), b, mask=mask, slots=kept, slots_t=min(n, big))
    dense_of = lambda w: w.todense()
    same = lambda w: w
    kind, rows = c["kind"], c.get("rows")
    if kind == "nm":
        _gpu_nm._parts = lambda groups: c["parts"]
        _gpu_nm.RESIDENT = c["resident"]
        product = jax.jit(lambda x, w: _gpu_nm.product(x, w, None, how))
        return product, jnp.matmul, rows, partial(nm, n=c["nm"][0], m=c["nm"][1]), dense_of, same, 4
    if kind in ("cores", "lt"):
        make = partial(nm, n=2, m=4)
        if kind == "lt":
            _cusparselt.register()
            product = jax.jit(partial(_cusparselt.multiplied, columns=SIDE))
            return product, jnp.matmul, rows, make, dense_of, _cusparselt.compressed, 3
        if "parts" in c:
            old = _sparse_cores._tiles
            def tiles(rows, k, columns):
                t = old(rows, k, columns)
                return t._replace(parts=c["parts"]) if rows <= _sparse_cores.FEW else t
            _sparse_cores._tiles = tiles
        product = jax.jit(lambda x, w: _sparse_cores.multiply(x, w, None, how))
        return product, jnp.matmul, rows, make, dense_of, sj.formats.TensorCoreArray.fromnm, 4 if rows < 256 else 3
    if kind == "cuda":
        from sparsejax.kernels.matmul import _cuda
        _cuda.parts = lambda groups, columns: c["parts"]
        product = jax.jit(lambda x, w: _cuda.product(x, w, None, how))
        return product, jnp.matmul, rows, partial(nm, n=c["nm"][0], m=c["nm"][1]), dense_of, same, 6
    if kind == "block":
        from sparsejax.kernels import _mosaic, _walk
        _walk.CLUSTERS = c.get("clusters", (4, 2))
        real = getattr(_mosaic, "_real", None) or _mosaic.multiprocessors
        _mosaic._real = real
        _mosaic.multiprocessors = real if c.get("persistent", 1) else lambda: 10**9
        product = jax.jit(lambda x, w: _gpu_block.product(x, w, None, how))
        return product, jnp.matmul, rows, partial(blocks, b=c["block"], d=c["density"]), dense_of, same, 4 if rows < 256 else 3
    from sparsejax.kernels import _mosaic, _walk
    _walk.CLUSTERS = (4, 2)
    _mosaic.multiprocessors = getattr(_mosaic, "_real", None) or _mosaic.multiprocessors
    if kind == "back":
        def product(x, w):
            return _gpu_block.transposed(x, w, how), _gpu_block.sampled(x, x, w, how)
        def dense(x, w):
            return jnp.matmul(x, w.T), jnp.matmul(x.T, x)
        return jax.jit(product), dense, rows, partial(blocks, b=c["block"], d=c["density"]), dense_of, same, 3
    if kind == "active":
        D, N, g = 8192, 8192, 64
        def make(key):
            a, b, s = jax.random.split(key, 3)
            up, down = normal(a, (N // g, g, D)) * 2, normal(b, (N // g, g, D))
            score = jax.random.uniform(s, (N // g,))
            return up, down, sj.formats.select_topk(score, N // g // 10)
        def product(x, w):
            up, down, s = w
            return sj.kernels.active_ffn(x, up, down, s, implementation="pallas_gpu")
        def full(w):
            up, down, s = w
            on = jnp.zeros(N // g).at[s.index].set(1).astype(up.dtype)
            return up.reshape(N, D), (down * on[:, None, None]).reshape(N, D)
        def dense(x, w):
            return jax.nn.relu(x @ w[0].T) @ w[1]
        return jax.jit(product), dense, rows, make, full, same, 3
    raise ValueError(kind)


def check(c, lock):
    import jax, jax.numpy as jnp, numpy as np
    from sparsejax.kernels.matmul import _pallas_gpu
    from sparsejax.kernels.matmul._cases import TILED
    from sparsejax.kernels.matmul._finish import How
    from sparsejax.formats import BlockArray
    case = TILED[c["case"]]
    x, w = case.make(jnp.bfloat16)
    x = x.reshape(-1, x.shape[-1])
    rng = np.random.default_rng(1)
    dy = jnp.asarray(rng.normal(size=(x.shape[0], w.shape[1])), jnp.bfloat16)
    bias = jnp.linspace(-3, 3, w.shape[1])
    how = How(activation=jax.nn.silu, dtype=jnp.bfloat16)
    f64 = lambda a: np.asarray(a, np.float32).astype(np.float64)
    full = f64(w.todense())
    z = f64(x) @ full + f64(bias)
    want = {"product": z / (1 + np.exp(-z))}
    calls = {"product": lambda: jax.jit(lambda x, w: _pallas_gpu.product(x, w, bias, how))(x, w)}
    if isinstance(w, BlockArray):
        plain = How(dtype=jnp.bfloat16)
        want["transposed"] = f64(dy) @ full.T
        calls["transposed"] = lambda: jax.jit(lambda d, w: _pallas_gpu.transposed(d, w, plain))(dy, w)
        if w.block[0] % 64 == 0:
            want["sampled"] = np.where(f64(w.used)[..., None, None] > 0, f64(w.take(jnp.asarray(f64(x).T @ f64(dy), jnp.float32))), 0)
            calls["sampled"] = lambda: jax.jit(lambda x, d, w: _pallas_gpu.sampled(x, d, w, plain))(x, dy, w)
    res = {}
    with lock():
        for n, call in calls.items():
            try:
                got = f64(call())
                res[n] = float(np.linalg.norm(got - want[n]) / np.linalg.norm(want[n]))
            except Exception as e:
                res[n] = f"{type(e).__name__}: {str(e)[:300]}"
    return dict(case=case.name, **res)


def run(c, lock):
    import jax, jax.numpy as jnp
    if c["kind"] == "check":
        return check(c, lock)
    product, dense, rows, make, full_of, prepare, count = build(c)
    t = time.time()
    key = jax.random.key(0)
    w_shape = jax.eval_shape(make, key)
    p_shape, f_shape = jax.eval_shape(prepare, w_shape), jax.eval_shape(full_of, w_shape)
    x_shape = jax.ShapeDtypeStruct((rows, SIDE), jnp.bfloat16)
    trips = 40 if rows < 256 else 2

    def chain(f):
        def body(_, carry):
            x, ys, ws = carry
            ys = list(ys)
            for n in range(count):
                ys[n] = f(x, ws[n])
                x, ys, ws = jax.lax.optimization_barrier((x, ys, ws))
            return x, tuple(ys), ws
        def go(x, ws):
            y = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(f, x, ws[0]))
            return jax.lax.fori_loop(0, trips, body, (x, (y,) * count, ws))[1]
        return jax.jit(go)

    sparse_one = product.lower(x_shape, p_shape).compile()
    sparse = chain(product).lower(x_shape, (p_shape,) * count).compile()

    def both(key):
        w = make(key)
        return prepare(w), full_of(w)

    both = jax.jit(both).lower(key).compile()
    x_make = jax.jit(lambda k: jax.random.normal(k, (rows, SIDE), jnp.bfloat16)).lower(key).compile()
    f32 = lambda a: a.astype(jnp.float32).ravel()

    def errors(got, again, want):
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want))
        error = [jnp.linalg.norm(f32(a) - f32(b)) / jnp.linalg.norm(f32(b)) for a, b in pairs if a.shape == b.shape]
        moved = [jnp.abs(a - b).max() for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(again))]
        return jnp.stack(error).max(), jnp.stack(moved).max()

    got_shape = jax.eval_shape(product, x_shape, p_shape)
    errors = jax.jit(errors).lower(got_shape, got_shape, jax.eval_shape(dense, x_shape, f_shape)).compile()
    t_compile = time.time() - t
    with lock():
        t = time.time()
        dense_one = jax.jit(dense).lower(x_shape, f_shape).compile()
        dense_c = chain(dense).lower(x_shape, (f_shape,) * count).compile()
        x = x_make(jax.random.key(9))
        packed, fulls = zip(*(both(jax.random.key(i)) for i in range(count)))
        jax.block_until_ready((fulls, packed))
        error, moved = map(float, errors(sparse_one(x, packed[0]), sparse_one(x, packed[0]), dense_one(x, fulls[0])))
        def timed(f, *args):
            jax.block_until_ready(f(*args))
            best, reps = 1e9, 1
            for i in range(6):
                s = time.perf_counter()
                for _ in range(reps):
                    out = f(*args)
                jax.block_until_ready(out)
                e = (time.perf_counter() - s) / reps
                best = min(best, e)
                if i == 0:
                    reps = max(1, int(0.02 / e))
            return best / trips / count
        ts = timed(sparse, x, packed)
        td = timed(dense_c, x, fulls)
        ts, td = min(ts, timed(sparse, x, packed)), min(td, timed(dense_c, x, fulls))
        kernels = None
        try:
            if rows >= 256: raise ValueError("large")
            from jax.experimental.mosaic.gpu import profiler
            _, kernels = profiler.Cupti().measure(sparse_one, aggregate=False)(x, packed[1])
            kernels = [(n[:40], round(1e3 * t, 1)) for n, t in kernels]
        except Exception as e:
            kernels = f"{type(e).__name__}: {str(e)[:100]}"
        t_lock = time.time() - t
    return dict(ratio=round(td / ts, 3), error=error, moved=moved, us=round(1e6 * ts, 1), dense_us=round(1e6 * td, 1), kernels=kernels, compile_s=round(t_compile, 1), lock_s=round(t_lock, 1))


class Lock:
    def __init__(self, path, worker):
        self.path, self.worker = path, worker
    def __call__(self):
        return self
    def __enter__(self):
        self.f = open(self.path, "w")
        fcntl.flock(self.f, fcntl.LOCK_EX)
        open(f"{self.path}.holder", "w").write(f"{self.worker} {time.time()}")
    def __exit__(self, *_):
        open(f"{self.path}.holder", "w").write("")
        self.f.close()


def worker(folder, number):
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    lock = Lock(f"{folder}/lock", number)
    only = os.environ.get("EXPLORE_ONLY")
    for i, c in enumerate(cells()):
        if only and c["kind"] not in only.split(","):
            continue
        try:
            os.mkdir(f"{folder}/cell{i}")
        except FileExistsError:
            continue
        open(f"{folder}/worker{number}", "w").write(name_of(c))
        try:
            result = run(c, lock)
        except Exception as e:
            result = dict(failed=f"{type(e).__name__}: {str(e)[:600]}", where=traceback.format_exc()[-700:])
        import jax
        jax.clear_caches()
        with open(f"{folder}/results{number}.jsonl", "a") as f:
            f.write(json.dumps(dict(cell=name_of(c), at=round(time.time() - T0), **result)) + "\n")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--worker", nargs=2)
    p.add_argument("--seconds", type=float, default=200)
    p.add_argument("--workers", type=int, default=8)
    a = p.parse_args()
    if a.worker:
        return worker(a.worker[0], int(a.worker[1]))
    folder = "/tmp/explore"
    os.makedirs(folder, exist_ok=True)
    out = os.environ.get("OUT", folder)
    env = os.environ | {"EXPLORE_T0": str(T0)}
    procs = {}
    nxt = 0
    def start():
        nonlocal nxt
        log = open(f"{folder}/log{nxt}.txt", "w")
        procs[nxt] = subprocess.Popen([sys.executable, __file__, "--worker", folder, str(nxt)], env=env, stdout=log, stderr=log)
        nxt += 1
    build = "import sys; from sparsejax.kernels.matmul import _cuda, _cusparselt; n, m = map(int, sys.argv[1:]); print(_cuda.compiled(n, m, '9.0', None, None)) if n else _cusparselt.register()"
    cpu = env | {"JAX_PLATFORMS": "cpu"}
    builds = [subprocess.Popen([sys.executable, "-c", build, *map(str, p)], env=cpu) for p in ((2, 4), (4, 8), (1, 4), (1, 8), (2, 16), (0, 0))]
    for p in builds:
        p.wait()
    print("built", round(time.time() - T0), flush=True)
    for _ in range(a.workers):
        start()
    killed = []
    while time.time() - T0 < a.seconds and any(p.poll() is None for p in procs.values()):
        time.sleep(1)
        try:
            held = open(f"{folder}/lock.holder").read().split()
        except FileNotFoundError:
            continue
        if held and time.time() - float(held[1]) > 35:
            n = int(held[0])
            killed.append(open(f"{folder}/worker{n}").read())
            procs[n].kill()
            open(f"{folder}/lock.holder", "w").write("")
            start()
    for p in procs.values():
        p.kill()
    lines = [l for f in sorted(glob.glob(f"{folder}/results*.jsonl")) for l in open(f)]
    open(f"{out}/results.jsonl", "w").writelines(lines)
    with open(f"{out}/logs.txt", "w") as f:
        for l in sorted(glob.glob(f"{folder}/log*.txt")):
            f.write(l + open(l).read()[-6000:])
    for l in sorted(lines):
        r = json.loads(l)
        if "ratio" in r:
            print(r["cell"], "|", r["ratio"], r["us"], r["dense_us"], f"{r['error']:.0e}", r["moved"], r["compile_s"], r["lock_s"])
        else:
            print({k: (str(v)[:100]) for k, v in r.items() if k not in ("where", "at")})
    print("killed", killed, "of", len(cells()), "got", len(lines), "seconds", round(time.time() - T0))


if __name__ == "__main__":
    main()
