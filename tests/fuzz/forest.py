"""Fuzzing forests: any bytes as the arrays of an ensemble, and as rows for it.

What must hold for every input, beside no report of a sanitizer:

- an ensemble is refused by ValueError, or served; kernel and twin agree on which;
- walks, and masks of 8 and 16 rows, give the same bits, and the twin's sums;
- what is held at once stays under a fixed multiple of the arrays.

An input is a header (kind, aggregate, post, counts) and then the arrays one after the other, most of small numbers, so
that changes of single bytes give other ensembles. Start it by `scripts/fuzz forest`.
"""

from __future__ import annotations

import random
import struct

import driver
import numpy as np

from penstock.kernels import forest as kernel
from penstock.kernels.reference import forest as reference

KINDS = ("regression", "classes", "binary", "pair")
AGGREGATES = ("SUM", "AVERAGE", "MIN", "MAX")
STEPS = ("Imputer", "Sub", "Mul", "Div", "Add")
POSTS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")
HEADER = struct.Struct("<10B")
ROWS = 19
SLACK = 1 << 20


def ensemble(body: bytes):
    """The arguments of a forest and rows, from bytes; arrays are as long as bytes reach, whatever the header says."""
    head = HEADER.unpack_from(body.ljust(HEADER.size, b"\0"))
    rest = memoryview(body)[HEADER.size :]
    n, trees, weights, features = head[0], head[1] % 16, head[2], head[3] % 8

    def take(count, dtype):
        nonlocal rest
        size = np.dtype(dtype).itemsize
        whole = min(count, len(rest) // size)
        array = np.frombuffer(rest[: whole * size], dtype).copy()  # aligned
        rest = rest[whole * size :]
        return array

    signed = lambda count: take(count, np.int8).astype(np.int64) & ~(-256 if head[9] & 1 else 0)  # noqa: E731
    kind = KINDS[head[4] % 4]
    targets = {"binary": 1, "pair": 2}.get(kind, head[7] % 5)
    labels = {"regression": 0, "binary": 2, "pair": 2, "classes": targets}[kind]
    arrays = {
        "modes": take(n, np.uint8) % 8,
        "features": signed(n),
        "true_children": signed(n),
        "false_children": signed(n),
        "missing": take(n, np.uint8),
        "roots": signed(trees),
        "leaf_nodes": signed(weights),
        "leaf_targets": signed(weights),
        "values": take(n, np.float32),
        "leaf_weights": take(weights, np.float32),
        "n_features": features,
        "n_targets": targets,
        "kind": kind,
        "aggregate": AGGREGATES[head[5] % 4],
        "post": POSTS[head[6] % 5],
        "base": [0.5] * (targets if head[8] & 1 else 0),
        "labels": tuple(range(labels)),
        "steps": [
            (STEPS[(i + head[9]) % 5], np.resize(np.append(take(features, np.float32), np.float32(2)), features), 1.0)
            for i in range(head[9] >> 6)
        ],
    }
    rows = np.resize(np.concatenate([take(64, np.float32), np.float32([0.0, np.nan])]), (ROWS, features))
    return arrays, rows


def run(forest, rows, n, *, labelled):
    scores, labels = np.zeros((n, forest.n_outputs), np.float32), np.zeros(n, np.int64)
    forest.run(np.ascontiguousarray(rows[:n]), scores, labels if labelled else None)
    return scores.tobytes() + labels.tobytes(), scores


def made(module, arrays, **more):
    try:
        return module.Forest(**arrays, **more)
    except ValueError:
        return None


def target(body: bytes) -> None:
    arrays, rows = ensemble(body)
    found = []
    used = driver.most_memory(lambda: found.append(made(kernel, arrays, lanes=0)))
    assert used <= SLACK + 512 * len(body), f"{used} bytes held for an ensemble of {len(body)}"
    forest = found[0]
    twin = made(reference, arrays) if arrays["n_features"] and arrays["n_targets"] else None
    assert (forest is None) == (twin is None), "the twin decides otherwise"
    if forest is None:
        return
    labelled = arrays["kind"] != "regression"
    for lanes in (8, 16):
        other = kernel.Forest(**arrays, lanes=lanes)
        for n in (0, 1, 7, ROWS):
            assert run(other, rows, n, labelled=labelled)[0] == run(forest, rows, n, labelled=labelled)[0]
    if arrays["post"] == "NONE":
        with np.errstate(all="ignore"):
            expected, got = (run(one, rows, ROWS, labelled=labelled)[1] for one in (twin, forest))
        assert np.array_equal(expected, got, equal_nan=True)


def body_of(modes, features, yes, no, missing, roots, leaves, targets, values, weights, head) -> bytes:
    numbers = [modes, features, yes, no, missing, roots, leaves, targets]
    packed = b"".join(bytes(value & 0xFF for value in part) for part in numbers)
    floats = struct.pack(f"<{len(values) + len(weights)}f", *values, *weights)
    return HEADER.pack(len(modes), len(roots), len(leaves), *head) + packed + floats + struct.pack("<4f", 1, 2, -1, 0.5)


def seeds() -> list[bytes]:
    """Trees by hand: a stump, one of depth 2, several trees, shared leaves, classes, a circle."""
    stump = ([0, 0, 0], [1, 0, 0], [2, 0, 0], [1, 0, 0], [0], [1, 2], [0, 0], [1, 0, 0], [1, 2])
    found = [body_of([mode, 0, 0], *stump, (1, 0, 0, 0, 1, 1, 0)) for mode in range(1, 7)]
    modes, features, yes = [1, 2, 0, 0, 5, 0, 0], [0, 1, 0, 0, 1, 0, 0], [1, 2, 0, 0, 5, 0, 0]
    deep = (modes, features, yes, [4, 3, 0, 0, 6, 0, 0], [0, 1, 0, 0, 1, 0, 0])
    values = [0.5, 1, 0, 0, 2, 0, 0]
    for kind in range(4):
        count = (1, 3, 1, 2)[kind]
        leaves = [leaf for leaf in (2, 3, 5, 6) for _ in range(count)]
        targets = [target for _ in range(4) for target in range(count)]
        weights = [0.25 * i - 1 for i in range(len(leaves))]
        found += [
            body_of(
                *deep,
                roots,
                leaves,
                targets,
                values,
                weights,
                (2, kind, aggregate, aggregate, count, 0, 64 * aggregate),
            )
            for roots in ([0], [0, 4, 1, 2])
            for aggregate in range(4 if kind == 0 else 1)
        ]
    found.append(body_of([1, 0], [0, 0], [0, 0], [1, 0], [0, 0], [0], [1], [0], [1, 0], [1], (1, 0, 0, 0, 1, 0, 0)))
    return found


SEEDS = seeds()


def mutate(chance: random.Random, body: bytes) -> bytes:
    """Small numbers here and there, a piece twice or left out, or another seed's beginning."""
    made = bytearray(body or chance.choice(SEEDS))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(made)) if made else 0
        what = chance.randrange(5)
        if what <= 1 and made:
            made[at] = chance.choice([0, 1, 2, 3, 4, 5, 6, 7, 127, 128, 255, chance.randrange(256)])
        elif what == 2:
            made[at:at] = made[at : at + chance.randint(1, 16)]
        elif what == 3:
            del made[at : at + chance.randint(1, 8)]
        else:
            made[: HEADER.size] = chance.choice(SEEDS)[: HEADER.size]
    return bytes(made)


def served() -> int:
    """How many seeds are ensembles: all but the circle."""
    return sum(made(kernel, ensemble(body)[0]) is not None for body in SEEDS)


if __name__ == "__main__":
    assert served() >= len(SEEDS) - 1
    driver.fuzz(target, mutate=mutate, seeds=SEEDS)
