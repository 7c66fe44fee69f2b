"""Ensembles of trees: the kernel against its twin and against ONNX Runtime, to the bit."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.benchmarks.ensembles import complete, odd, rows_for, to_onnx
from penstock.kernels import forest as kernel
from penstock.kernels.reference import forest as reference

TWINS = pytest.mark.parametrize("forests", [kernel, reference], ids=["kernel", "reference"])
KINDS = ("regression", "binary", "pair", "classes")
LEAF, LEQ = 0, 1


def stump(**changed):
    """`x[0] <= 1` gives 10, else 20."""
    arrays = {
        "features": np.array([0, 0, 0]),
        "values": np.array([1, 0, 0], np.float32),
        "modes": np.array([LEQ, LEAF, LEAF], np.uint8),
        "true_children": np.array([1, 0, 0]),
        "false_children": np.array([2, 0, 0]),
        "missing": np.zeros(3, np.uint8),
        "roots": np.array([0]),
        "leaf_nodes": np.array([1, 2]),
        "leaf_targets": np.array([0, 0]),
        "leaf_weights": np.array([10, 20], np.float32),
        "n_features": 1,
    }
    return arrays | changed


def scores_of(forest, rows, *, labels=False):
    rows = np.ascontiguousarray(rows, np.float32)
    scores = np.full((len(rows), forest.n_outputs), np.nan, np.float32)
    told = np.zeros(len(rows), np.int64) if labels else None
    forest.run(rows, scores, told)
    return (scores, told) if labels else scores


def session(arrays):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(to_onnx(arrays), options, providers=["CPUExecutionProvider"])


def steps(a, b):
    """How many float32 numbers lie between the two, at most; NaN equals NaN."""
    both = np.isnan(a) & np.isnan(b)
    keys = [
        np.where(x.view(np.int32) < 0, -(x.view(np.int32) & 0x7FFFFFFF).astype(np.int64), x.view(np.int32))
        for x in (a, b)
    ]
    return int(np.where(both, 0, np.abs(keys[0] - keys[1])).max(initial=0))


@TWINS
def test_a_stump_by_hand(forests):
    forest = forests.Forest(**stump())
    assert scores_of(forest, [[0.5], [1], [1.5], [np.nan], [np.inf]]).ravel().tolist() == [10, 10, 20, 20, 20]


@TWINS
@pytest.mark.parametrize(
    ("mode", "true_for"), [(1, "<="), (2, "<"), (3, ">="), (4, ">"), (5, "=="), (6, "!=")], ids=str
)
@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.parametrize("value", [1.0, 0.0, -0.0, np.inf, -np.inf, 1e-45, np.nan], ids=str)
def test_every_comparison_is_that_of_numpy(forests, mode, true_for, missing, value):
    arrays = stump(
        modes=np.array([mode, 0, 0], np.uint8),
        missing=np.array([missing, 0, 0], np.uint8),
        values=np.array([value, 0, 0], np.float32),
    )
    near = [np.nextafter(np.float32(value), np.float32(to)) for to in (-np.inf, np.inf)]
    x = np.array([value, *near, 0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 2], np.float32)
    true = eval(f"x {true_for} np.float32(value)") | (np.isnan(x) & bool(missing))
    assert scores_of(forests.Forest(**arrays), x[:, None]).ravel().tolist() == np.where(true, 10, 20).tolist()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), n=st.integers(0, 40), lanes=st.sampled_from([-1, 0, 8]))
def test_the_kernel_equals_its_twin(kind, seed, n, lanes):
    arrays = odd(seed, kind=kind)
    try:
        twin = reference.Forest(**arrays)
    except ValueError:
        with pytest.raises(ValueError):
            kernel.Forest(**arrays)
        return
    forest = kernel.Forest(**arrays, lanes=lanes)
    assert (forest.n_trees, forest.n_nodes, forest.depth) == (twin.n_trees, twin.n_nodes, twin.depth)
    rows = rows_for(arrays, n, seed)
    ours, theirs = (scores_of(one, rows, labels=kind != "regression") for one in (forest, twin))
    if kind != "regression":
        assert (ours[1] == theirs[1]).all()
        ours, theirs = ours[0], theirs[0]
    if arrays["post"] == "NONE" or (kind == "regression" and arrays["n_targets"] == 1):
        assert steps(ours, theirs) == 0
    else:
        assert np.allclose(ours, theirs, 1e-6, 1e-7, equal_nan=True)  # numpy's exp is another


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), modes=st.sampled_from([(1,), (2,), (4,), (1, 2), (3, 4), (1, 2, 3, 4, 5, 6)]))
def test_the_kernel_equals_onnx_runtime(kind, seed, modes):
    """In labels and in sums to the bit; behind a transform to one step of float32."""
    arrays = odd(seed, kind=kind, modes=modes)
    arrays["leaf_weights"] = np.abs(arrays["leaf_weights"]) if seed % 3 == 0 else arrays["leaf_weights"]
    try:
        forest = kernel.Forest(**arrays)
    except ValueError:
        return
    rows = rows_for(arrays, 33, seed)
    expected = session(arrays).run(None, {"x": rows})
    for part in (slice(0, 33), slice(0, 1), slice(3, 12)):
        got = scores_of(forest, rows[part], labels=kind != "regression")
        if kind == "regression":
            assert steps(got, expected[0][part]) <= 1
        else:
            assert (got[1] == expected[0][part]).all()
            assert steps(got[0], expected[1][part]) <= 1


@pytest.mark.parametrize("lanes", [0, 8, 16])
@pytest.mark.parametrize(("trees", "depth"), [(1, 0), (3, 1), (9, 3), (20, 4), (20, 5), (20, 6), (9, 7), (5, 11)])
def test_every_way_and_every_size_gives_the_same_bits(trees, depth, lanes):
    arrays = complete(trees, depth, 7, seed=depth)
    forest = kernel.Forest(**arrays, lanes=lanes)
    rows = np.random.default_rng(1).uniform(-1, 1, (300, 7)).astype(np.float32)
    expected = session(arrays).run(None, {"x": rows})[0]
    for n in (*range(1, 40), 63, 64, 65, 255, 256, 257, 300):
        assert (scores_of(forest, rows[:n]) == expected[:n]).all(), n


def grown(trees, leaves, chance, features=5):
    """Trees grown leaf by leaf, as LightGBM does: some long ways, some short ones. `chance` of 1 and 0 make chains."""
    draw = np.random.default_rng(leaves)
    yes, no, modes, roots = [], [], [], []
    for _ in range(trees):
        at = len(modes)
        roots.append(at)
        ends = [at]
        modes.append(LEAF), yes.append(0), no.append(0)
        for _ in range(leaves - 1):
            at = ends.pop(-1 if draw.random() < chance else 0)
            modes[at], yes[at], no[at] = LEQ, len(modes), len(modes) + 1
            ends += [len(modes), len(modes) + 1] if chance else [len(modes) + 1, len(modes)][::-1]
            modes.extend([LEAF, LEAF]), yes.extend([0, 0]), no.extend([0, 0])
    modes = np.array(modes, np.uint8)
    found = np.flatnonzero(modes == LEAF)
    return {
        "features": draw.integers(0, features, len(modes)),
        "values": draw.normal(size=len(modes)).astype(np.float32),
        "modes": modes,
        "true_children": np.array(yes),
        "false_children": np.array(no),
        "missing": draw.integers(0, 2, len(modes)).astype(np.uint8),
        "roots": np.array(roots),
        "leaf_nodes": found,
        "leaf_targets": np.zeros(len(found), np.int64),
        "leaf_weights": draw.normal(size=len(found)).astype(np.float32),
        "n_features": features,
    }


def assert_masks_give_the_bits_of_walks(arrays, alike):
    """And that there are masks exactly where `alike` has them."""
    rows = np.random.default_rng(1).normal(size=(70, 5)).astype(np.float32)
    rows[::9, 1] = np.nan
    expected = scores_of(kernel.Forest(**arrays, lanes=0), rows)
    assert (expected == scores_of(reference.Forest(**arrays), rows)).all()
    for lanes in (8, 16):
        forest = kernel.Forest(**arrays, lanes=lanes)
        assert forest.lanes == kernel.Forest(**alike, lanes=lanes).lanes
        for n in (4, 8, 9, 16, 24, 33, 64, 70):
            assert (scores_of(forest, rows[:n]) == expected[:n]).all(), (lanes, n)


@pytest.mark.parametrize("chance", [0, 0.5, 0.9, 1])
@pytest.mark.parametrize("leaves", [1, 2, 31, 32, 33, 63, 64, 65, 100, 128])
def test_masks_of_any_shape_give_the_bits_of_walks(leaves, chance):
    arrays = grown(6, leaves, chance)
    assert_masks_give_the_bits_of_walks(arrays, arrays)


def of_sums(arrays, n, named=0.9):
    """The same trees, each leaf of which names some of `n` sums."""
    draw = np.random.default_rng(n)
    leaf, target = np.nonzero(draw.random((len(arrays["leaf_nodes"]), n)) < named)
    weights = draw.normal(size=len(leaf)).astype(np.float32)
    return arrays | {
        "leaf_nodes": arrays["leaf_nodes"][leaf],
        "leaf_targets": target.copy(),
        "leaf_weights": weights,
        "n_targets": n,
    }


@pytest.mark.parametrize("n_sums", [2, 3, 17])
@pytest.mark.parametrize("leaves", [1, 2, 31, 32, 33, 64, 65, 100])
def test_masks_of_several_sums_give_the_bits_of_walks(leaves, n_sums):
    alone = grown(6, leaves, 0.5)
    assert_masks_give_the_bits_of_walks(of_sums(alone, n_sums), alone)


def merged(*forests):
    """One forest of the trees of several."""
    both, n = {}, 0
    for arrays in forests:
        moved = {name: arrays[name] + n for name in ("true_children", "false_children", "roots", "leaf_nodes")}
        for name, values in (arrays | moved).items():
            if isinstance(values, np.ndarray):
                both[name] = np.concatenate([both[name], values]) if name in both else values
        n += len(arrays["modes"])
    return both


def test_masks_of_trees_of_one_sum_and_of_several_side_by_side():
    """And of one to five words, so that each way of counting leaves is met by each instruction set."""
    alone = [grown(2, leaves, 0.5) for leaves in (1, 20, 40)]
    for target, arrays in enumerate(alone):
        arrays["leaf_targets"] += target
    several = [of_sums(grown(2, leaves, 0.5), 4) for leaves in (33, 1, 140)]
    arrays = merged(*(one for pair in zip(alone, several, strict=True) for one in pair))
    for aggregate in ("SUM", "AVERAGE"):
        more = {"n_features": 5, "n_targets": 4, "aggregate": aggregate}
        assert_masks_give_the_bits_of_walks(arrays | more, grown(6, 30, 0.5))


def test_masks_are_not_for_leaves_that_name_few_sums_or_one_twice():
    arrays = grown(20, 10, 0.5)
    assert kernel.Forest(**of_sums(arrays, 40, named=0.2)).lanes == 0
    twice = of_sums(arrays, 2, named=1)
    twice["leaf_targets"] = np.zeros_like(twice["leaf_targets"])
    twice["leaf_targets"][-1] = 1
    forest = kernel.Forest(**twice)
    assert forest.lanes == 0
    rows = np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32)
    assert (scores_of(forest, rows) == scores_of(reference.Forest(**twice), rows)).all()


def test_masks_are_for_trees_of_few_leaves():
    """Where the processor has any: else every forest walks."""
    widest = kernel.Forest(**complete(3, 3, 5)).lanes
    assert widest in (0, 8, 16)
    for arrays, lanes in ((grown(6, 8 * widest, 0.9), widest), (complete(3, 9, 5), 0)):
        assert kernel.Forest(**arrays).lanes == lanes
    both = merged(grown(50, 3, 1), grown(1, 1500, 0.5))  # few leaves on the average, but one tree of many
    assert kernel.Forest(**both, n_features=5).lanes == 0


@TWINS
def test_steps_in_front_round_as_onnx_does(forests):
    arrays = complete(20, 5, 6)
    draw = np.random.default_rng(1)
    values = {name: draw.normal(size=6).astype(np.float32) for name in ("Sub", "Mul", "Add", "Div", "Imputer")}
    rows = draw.normal(size=(60, 6)).astype(np.float32)
    rows[::3, 2], rows[::4, 1], rows[5] = np.nan, 7, np.inf
    steps = [("Imputer", values["Imputer"], 7), *((name, values[name], 0) for name in ("Sub", "Mul", "Add", "Div"))]
    steps.append(("Imputer", values["Mul"], np.nan))
    done = np.where(rows == 7, values["Imputer"], rows)
    with np.errstate(all="ignore"):
        done = ((done - values["Sub"]) * values["Mul"] + values["Add"]) / values["Div"]
    done = np.where(np.isnan(done), values["Mul"], done)
    got = scores_of(forests.Forest(**arrays, steps=steps), rows)
    assert (got == scores_of(forests.Forest(**arrays), done)).all()


def test_steps_that_do_not_fit_are_refused():
    one = np.ones(1, np.float32)
    for steps, told in (
        ([("Sub", np.ones(2, np.float32), 0)], "a step Sub of 2 values for 1 features"),
        ([("Pow", one, 0)], "unknown step 'Pow'"),
        ([("Sub", one, 0)] * 9, "9 steps before the trees: at most 8"),
    ):
        with pytest.raises(ValueError, match=told):
            kernel.Forest(**stump(), steps=steps)


@TWINS
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"true_children": np.array([0, 0, 0])}, "leads in a circle"),
        ({"true_children": np.array([3, 0, 0])}, "leads to nodes 3 and 2 of 3"),
        ({"false_children": np.array([-1, 0, 0])}, "leads to nodes 1 and -1 of 3"),
        ({"false_children": np.array([1 << 40, 0, 0])}, "leads to nodes"),
        ({"features": np.array([1, 0, 0])}, "asks for feature 1 of 1"),
        ({"features": np.array([-1, 0, 0])}, "asks for feature -1"),
        ({"features": np.array([0, 0])}, "every node has one of each"),
        ({"modes": np.array([7, 0, 0], np.uint8)}, "has mode 7"),
        ({"missing": np.zeros(2, np.uint8)}, "2 missing"),
        ({"roots": np.array([3])}, "tree 0 begins at node 3"),
        ({"roots": np.zeros(100, np.int64)}, "leads in a circle, or to the same nodes too often"),
        ({"leaf_nodes": np.array([0, 2])}, "belongs to node 0, which is no leaf"),
        ({"leaf_nodes": np.array([1, 9])}, "belongs to node 9"),
        ({"leaf_nodes": np.array([1])}, "not as many"),
        ({"leaf_nodes": np.array([1, 1])}, "a leaf of tree 0 has no weight, or several"),
        ({"leaf_targets": np.array([0, 1])}, "adds to output 1 of 1"),
        ({"leaf_weights": np.array([np.nan, 0], np.float32)}, "no number to add"),
        ({"kind": "classes", "labels": (0,)}, "do not fit the kind"),
        ({"kind": "binary", "labels": (0,)}, "1 labels"),
        ({"kind": "rank"}, "unknown kind"),
        ({"base": (1, 2)}, "2 base values for 1 outputs"),
        ({"n_features": 0}, "0 features"),
        ({"n_targets": 1 << 40}, "outputs"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_no_ensemble_is_refused_in_words(forests, changed, told):
    if forests is reference and ("n_features" in changed or "n_targets" in changed):
        pytest.skip("limits are the kernel's")
    with pytest.raises(ValueError, match=told if forests is kernel else "."):
        forests.Forest(**stump(**changed))


@TWINS
def test_branches_may_share_what_they_lead_to(forests):
    """As LightGBM's categories do: `x == 1 or x == 3` gives 10, else 20."""
    arrays = stump(
        features=np.zeros(4, np.int64),
        values=np.array([1, 0, 0, 3], np.float32),
        modes=np.array([5, LEAF, LEAF, 5], np.uint8),
        true_children=np.array([1, 0, 0, 1]),
        false_children=np.array([3, 0, 0, 2]),
        missing=np.zeros(4, np.uint8),
    )
    forest = forests.Forest(**arrays)
    assert scores_of(forest, [[1], [2], [3], [np.nan]]).ravel().tolist() == [10, 20, 10, 20]
    assert forest.n_nodes == 5


@TWINS
@pytest.mark.parametrize("trees", range(1, 9))
def test_trees_may_share_nodes_up_to_the_stated_measure(forests, trees):
    """Three nodes and so many roots: four times the nodes and one for each root may be walked."""
    arrays = stump(roots=np.zeros(trees, np.int64))
    if 3 * trees <= 4 * 3 + trees:
        assert forests.Forest(**arrays).n_nodes == 3 * trees
    else:
        with pytest.raises(ValueError, match="too often"):
            forests.Forest(**arrays)


def test_shapes_that_do_not_fit_are_refused():
    forest = kernel.Forest(**stump())
    rows, scores = np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32)
    for bad in ((rows, scores[:1]), (np.zeros((2, 2), np.float32), scores), (rows, np.zeros((2, 2), np.float32))):
        with pytest.raises(ValueError, match="expected"):
            forest.run(*bad)
    with pytest.raises(ValueError, match="labels"):
        forest.run(rows, scores, np.zeros(2, np.int64))
    forest.run(rows[:0], scores[:0])


def test_a_hundred_thousand_trees_of_one_leaf():
    n = 100_000
    arrays = complete(n, 0, 1)
    forest = kernel.Forest(**arrays)
    expected = np.float32(0)
    for weight in arrays["leaf_weights"]:
        expected += weight
    assert scores_of(forest, np.zeros((1, 1)))[0, 0] == expected
    assert (scores_of(forest, np.zeros((40, 1))) == expected).all()


def test_a_tree_that_is_one_long_way():
    """A chain of 20,000 branches, each with a leaf: as deep as it has nodes, and no recursion anywhere."""
    n = 20_000
    modes = np.tile(np.array([LEQ, LEAF], np.uint8), n)
    modes[-2:] = LEAF
    branch = np.flatnonzero(modes)
    children = np.zeros(2 * n, np.int64), np.zeros(2 * n, np.int64)
    children[0][branch], children[1][branch] = branch + 1, branch + 2
    leaves = np.flatnonzero((modes == LEAF) & (np.arange(2 * n) < 2 * n - 1))
    arrays = stump(
        features=np.zeros(2 * n, np.int64),
        values=np.arange(2 * n, dtype=np.float32),
        modes=modes,
        true_children=children[0],
        false_children=children[1],
        missing=np.zeros(2 * n, np.uint8),
        leaf_nodes=leaves,
        leaf_targets=np.zeros(len(leaves), np.int64),
        leaf_weights=leaves.astype(np.float32),
    )
    forest = kernel.Forest(**arrays)
    assert forest.depth == n - 1
    assert scores_of(forest, [[-1], [3], [1e9]] * 8).ravel().tolist() == [1, 5, 2 * n - 2] * 8


def test_many_columns_shrink_the_block_and_too_many_are_refused():
    for features in (2_000, 9_000, 16_000):
        arrays = complete(40, 9, features)
        rows = np.random.default_rng(0).uniform(-1, 1, (20, features)).astype(np.float32)
        expected = session(arrays).run(None, {"x": rows})[0]
        assert (scores_of(kernel.Forest(**arrays), rows) == expected).all()
    with pytest.raises(ValueError, match="different columns: at most 16383"):
        kernel.Forest(**complete(40, 11, 1 << 20))


def test_memory_per_node_is_as_stated():
    assert kernel.Forest(**complete(200, 6, 30)).nbytes <= 16 * 200 * 127
    assert kernel.Forest(**complete(200, 9, 30)).nbytes <= 9 * 200 * 1023


def test_one_forest_serves_many_threads():
    arrays = complete(50, 6, 10)
    forest = kernel.Forest(**arrays)
    rows = np.random.default_rng(0).uniform(-1, 1, (512, 10)).astype(np.float32)
    expected = scores_of(forest, rows)
    results = []

    def work(size):
        for _ in range(20):
            results.extend(
                (scores_of(forest, rows[i : i + size]) == expected[i : i + size]).all() for i in range(0, 512, size)
            )

    threads = [threading.Thread(target=work, args=(size,)) for size in (512, 64, 9, 128)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results)
    assert len(results) == 20 * sum(len(range(0, 512, size)) for size in (512, 64, 9, 128))


def test_threads_share_a_run_and_give_the_same_bits():
    arrays = odd(3, kind="binary")
    forest, alone = kernel.Forest(**arrays, threads=3), kernel.Forest(**arrays)
    for n in (0, 1, 63, 64, 65, 128, 129, 1000):
        rows = rows_for(arrays, n, n)
        scores, labels = np.zeros((n, 2), np.float32), np.zeros(n, np.int64)
        forest.run(rows, scores, labels, shared=True)
        expected = scores_of(alone, rows, labels=True)
        assert np.array_equal(scores, expected[0], equal_nan=True)
        assert (labels == expected[1]).all()


def test_who_finds_the_threads_engaged_runs_alone():
    """Many callers at once, some of whom share and some of whom do not: each gets its own rows' scores."""
    arrays = complete(30, 6, 10)
    forest = kernel.Forest(**arrays, threads=3)
    rows = np.random.default_rng(0).uniform(-1, 1, (1024, 10)).astype(np.float32)
    expected, wrong = scores_of(forest, rows), []

    def work(size, shared):
        scores = np.zeros((size, 1), np.float32)
        for i in list(range(0, 1024, size)) * 20:
            forest.run(rows[i : i + size], scores, shared=shared)
            if not (scores == expected[i : i + size]).all():
                wrong.append((size, i))

    callers = [threading.Thread(target=work, args=(size, size != 128)) for size in (1024, 512, 256, 128)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_the_threads_of_a_forest_end_with_it():
    def running():
        found = set()
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):  # another's that just ended
                found |= {task.name} if (task / "comm").read_text() == "forest\n" else set()
        return found

    before = running()
    forest = kernel.Forest(**stump(), threads=4)
    made = running() - before
    assert len(made) == 3
    forest.run(np.zeros((500, 1), np.float32), np.zeros((500, 1), np.float32), shared=True)
    del forest
    until = time.monotonic() + 10
    while made & running() and time.monotonic() < until:  # joined, but the system may show them for a moment
        time.sleep(0.001)
    assert not made & running()


def test_seeds_reach_every_kind_and_aggregate():
    """The generator is worth its name: many kinds of ensembles are taken by the kernel."""
    taken = set()
    for seed, kind in itertools.product(range(40), KINDS):
        arrays = odd(seed, kind=kind)
        try:
            kernel.Forest(**arrays)
        except ValueError:
            continue
        taken.add((kind, arrays["aggregate"], len(arrays["base"]) > 0))
    assert {kind for kind, _, _ in taken} == set(KINDS)
    assert {aggregate for _, aggregate, _ in taken} == {"SUM", "AVERAGE", "MIN", "MAX"}
