"""The selectors as the paper states them: NumPy in float64, one head and one query at a time."""

import numpy as np


def double(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def softmax(s):
    e = np.exp(s - s.max())
    return e / e.sum()


def probe(q, k, w):
    """Rows n - w to n - 1 of the causal softmax of one head, over all keys."""
    n, d = q.shape
    w = min(w, n)
    p = np.zeros((w, n))
    for r, i in enumerate(range(n - w, n)):
        p[r, : i + 1] = softmax(k[: i + 1] @ q[i] / np.sqrt(d))
    return p


def best(scores, k):
    """The indices of the k largest, the lower index first."""
    order = sorted(range(len(scores)), key=lambda j: (-scores[j], j))
    return set(order[: min(k, len(scores))])


def stripes(q, k, w):
    """Column and diagonal scores of one head."""
    n, p = len(q), probe(q, k, w)
    columns, offsets = np.zeros(n), np.zeros(n)
    for r in range(len(p)):
        i = n - len(p) + r
        for j in range(i + 1):
            columns[j] += p[r, j]
            offsets[i - j] += p[r, j]
    return columns, offsets


def force(scores, first):
    scores = scores.copy()
    scores[:first] = np.inf
    return scores


def vertical_slash(q, k, vertical, slash, w, sinks, local):
    columns, offsets = stripes(q, k, w)
    return best(force(columns, sinks), vertical), best(force(offsets, local), slash)


def flexprefill(q, k, alpha, least, w, sinks, local):
    found = []
    for scores, first in zip(stripes(q, k, w), (sinks, local)):
        scores = scores / min(w, len(q))
        size = max(least, int((np.cumsum(np.sort(scores)[::-1]) <= alpha).sum()) + 1)
        found.append(best(force(scores, first), min(size, len(q))))
    return found


def stripe_mask(columns, offsets, n):
    mask = np.zeros((n, n), bool)
    for i in range(n):
        for j in range(i + 1):
            mask[i, j] = j in columns or i - j in offsets
    return mask


def block_topk(q, k, b, top):
    """The blocks of each block of queries."""
    n = len(q)
    blocks = -(-n // b)
    pad = ((0, blocks * b - n), (0, 0))
    means = [np.pad(x, pad).reshape(blocks, b, -1).sum(1) / b for x in (q, k)]
    lists = []
    for i in range(blocks):
        scores = np.array([means[0][i] @ means[1][j] for j in range(i + 1)])
        for j in {0, i, i - 1} & set(range(i + 1)):
            scores[j] = np.inf
        lists.append(best(scores, top))
    return lists


def pool(scores, width):
    half, n = width // 2, len(scores)
    return np.array(
        [
            sum(scores[j] for j in range(i - half, i + half + 1) if 0 <= j < n) / width
            for i in range(n)
        ]
    )


def snap_scores(q, k, w, width, local, sinks, ada):
    """(Hk, n) from q (n, Hq, d) and k (n, Hk, d)."""
    shared, rows = q.shape[1] // k.shape[1], []
    for h in range(k.shape[1]):
        p = np.stack([probe(q[:, h * shared + g], k[:, h], w) for g in range(shared)])
        importance = p.max((0, 1)) if ada else p.mean(0).sum(0)
        pooled = pool(importance, width)
        pooled[max(len(q) - local, 0) :] = np.inf
        pooled[:sinks] = np.inf
        rows.append(pooled)
    return np.stack(rows)


def snapkv(q, k, capacity, w, width, local, sinks):
    scores = snap_scores(q, k, w, width, local, sinks, ada=False)
    return [best(row, capacity) for row in scores]


def ada_snapkv(q, k, capacity, w, width, local, sinks, least=0.2):
    scores = snap_scores(q, k, w, width, local, sinks, ada=True)
    heads, n = scores.shape
    floor = max(int(least * capacity), local + sinks)
    capacity = min(capacity, n)
    floor = min(floor, capacity)
    kept = [best(row, floor) for row in scores]
    rest = [(h, j) for h in range(heads) for j in range(n) if j not in kept[h]]
    rest.sort(key=lambda pair: (-scores[pair], pair))
    for h, j in rest[: heads * (capacity - floor)]:
        kept[h].add(j)
    return kept


def quest_pages(q, k, budget, page, shared=True):
    """The pages of the last token: q (Hq, d), k (n, Hk, d) with its key."""
    n, group = len(k), len(q) // k.shape[1]
    current = (n - 1) // page
    lists = []
    for h in range(k.shape[1]):
        bounds = np.zeros((group, current))
        for g in range(group):
            for p in range(current):
                keys = k[p * page : (p + 1) * page, h]
                one = q[h * group + g]
                bounds[g, p] = np.maximum(one * keys.min(0), one * keys.max(0)).sum()
        for scores in [bounds.sum(0)] if shared else bounds:
            lists.append(best(scores, budget // page) | {current})
    return lists
