"""Both halves of a split function, against the function itself."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.sensitivity.slicing import split, trace

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X, W1, W2, V = normal(5, 4), normal(4, 4), normal(4, 4), normal(4)


def parts_of(function, args, varying):
    program = trace(function, *args)
    return split(program, varying), list(program.constants.values())


def run(parts, constants, flat, new):
    """The split function at ``flat``, with the varying inputs replaced by ``new``, both halves compiled."""
    fixed = [x for i, x in enumerate(flat) if i not in parts.varying]
    kept = jax.jit(parts.prefix)(constants, fixed)
    return jax.jit(parts.suffix)(kept, constants, fixed, new)


def check(function, args, varying, rtol=1e-5):
    """Holds the split function against the function at two values of what varies, with one prefix for both."""
    parts, constants = parts_of(function, args, varying)
    flat, treedef = jax.tree.flatten(args)
    fixed = [x for i, x in enumerate(flat) if i not in varying]
    kept = jax.jit(parts.prefix)(constants, fixed)
    suffix = jax.jit(parts.suffix)
    outputs = []
    for factor in (1, -2):
        new = {i: flat[i] * jnp.asarray(factor, flat[i].dtype) for i in varying}
        expected = function(*jax.tree.unflatten(treedef, [new.get(i, x) for i, x in enumerate(flat)]))
        got = suffix(kept, constants, fixed, [new[i] for i in sorted(varying)])
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert (jnp.shape(a), jnp.result_type(a)) == (jnp.shape(b), jnp.result_type(b))
            np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol, atol=1e-5)
        outputs.append(np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(got)]))
    # Where nothing changes, the comparison would hold for any values.
    assert parts.unused == np.array_equal(*outputs)
    return parts


def names(steps):
    return Counter(step.equation.primitive.name for step in steps)


# --- layers ------------------------------------------------------------------------------------------------------------


def mlp(p, x):
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]).sum(axis=0)


def test_dense_layers():
    args = ({"a": W1, "b": W2}, X)
    last = check(mlp, args, [1])
    # All that comes before the last layer is in the prefix, and one array goes across.
    assert names(last.prefix_steps) == {"dot_general": 1, "tanh": 1}
    assert names(last.suffix_steps) == {"dot_general": 1, "tanh": 1, "reduce_sum": 1}
    assert len(last.kept) == 1
    first = check(mlp, args, [0])
    assert not first.prefix_steps and not first.kept
    assert names(first.suffix_steps) == {"dot_general": 2, "tanh": 2, "reduce_sum": 1}


def test_the_input_can_vary_as_well():
    assert not check(mlp, ({"a": W1, "b": W2}, X), [2]).prefix_steps


def test_convolutions():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def network(k1, k2, x):
        return jax.nn.relu(convolve(jax.nn.relu(convolve(x, k1)), k2)).mean(axis=(1, 2))

    parts = check(network, (normal(3, 3, 2, 3), normal(3, 3, 3, 2), normal(2, 5, 5, 2)), [1])
    assert names(parts.prefix_steps)["conv_general_dilated"] == names(parts.suffix_steps)["conv_general_dilated"] == 1


def recurrent(p, xs):
    def step(h, x):
        h = jnp.tanh(x @ p["in"] + h @ p["rec"])
        return h, h @ p["out"]

    return jax.lax.scan(step, jnp.zeros(4), xs)


def test_a_touched_scan_goes_to_the_suffix_as_a_whole():
    p = {"in": W1, "out": W2, "rec": normal(4, 4)}
    for i in range(3):
        parts = check(recurrent, (p, X), [i])
        assert names(parts.suffix_steps)["scan"] == 1
        assert names(parts.prefix_steps)["scan"] == 0


def test_an_untouched_scan_stays_in_the_prefix():
    def network(p, head, xs):
        return recurrent(p, xs)[1] @ head

    parts = check(network, ({"in": W1, "out": W2, "rec": normal(4, 4)}, V, X), [3])
    assert names(parts.prefix_steps)["scan"] == 1
    assert names(parts.suffix_steps) == {"dot_general": 1}


def loop(w, n, x):
    return jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, jnp.tanh(c[1] * w)), (0, x))[1]


def branch(flag, a, b, x):
    return jax.lax.cond(flag > 0, lambda: x * a, lambda: x + b)


@pytest.mark.parametrize("varying", [0, 2])
def test_a_touched_while_loop(varying):
    parts = check(loop, (V, jnp.int32(3), V + 1), [varying])
    assert names(parts.suffix_steps)["while"] == 1


def test_a_while_loop_whose_length_varies():
    parts = check(lambda w, n, x: loop(w, n[0].astype(int), x), (V, jnp.float32([2.5]), V + 1), [1])
    assert names(parts.suffix_steps)["while"] == 1


def test_an_untouched_while_loop():
    parts = check(lambda w, n, x, scale: loop(w, n, x) * scale, (V, jnp.int32(3), V + 1, V), [3])
    assert names(parts.prefix_steps)["while"] == 1
    assert names(parts.suffix_steps) == {"mul": 1}


@pytest.mark.parametrize("varying", [0, 1, 3])
def test_a_touched_branch(varying):
    # The predicate changes its sign, the taken branch its factor.
    parts = check(branch, (jnp.float32(1), V, V + 1, V + 2), [varying])
    assert names(parts.suffix_steps)["cond"] == 1


def test_an_untouched_branch():
    parts = check(lambda *args: branch(*args[:4]) - args[4], (jnp.float32(-1), V, V + 1, V + 2, V), [4])
    assert names(parts.prefix_steps)["cond"] == 1
    assert names(parts.suffix_steps) == {"sub": 1}


def test_the_branch_that_is_not_taken():
    # The equation is touched, though no output changes: dependence is read off the program, not off its values.
    parts, constants = parts_of(branch, (jnp.float32(1), V, V + 1, V + 2), [2])
    assert not parts.unused
    got = run(parts, constants, (jnp.float32(1), V, V + 1, V + 2), [V * 9])
    np.testing.assert_array_equal(got, (V + 2) * V)


# --- calls are looked into ----------------------------------------------------------------------------------------------


def test_nested_jit():
    @jax.jit
    def inner(w, x):
        return jnp.tanh(x @ w)

    @jax.jit
    def outer(a, b, x):
        return inner(b, inner(a, x))

    parts = check(outer, (W1, W2, X), [1])
    # Without a look inside, the whole call would be one touched equation.
    assert names(parts.prefix_steps) == {"dot_general": 1, "tanh": 1}
    assert names(parts.suffix_steps) == {"dot_general": 1, "tanh": 1}


@pytest.mark.parametrize("function", [jax.nn.relu, jax.nn.softmax, jax.nn.silu, jax.nn.gelu, jax.nn.logsumexp])
def test_functions_with_a_jvp_rule(function):
    parts = check(lambda a, b, x: function(function(x @ a) * b), (W1, X + 1, X), [1])
    assert not any("custom" in name or name in ("jit", "pjit") for name in names(parts.prefix_steps + parts.suffix_steps))
    assert names(parts.prefix_steps)["dot_general"] == 1
    assert names(parts.suffix_steps)["dot_general"] == 0


@jax.custom_vjp
def through(x):
    return jnp.round(x)


through.defvjp(lambda x: (through(x), None), lambda _, g: (g,))


def test_functions_with_a_vjp_rule():
    parts = check(lambda a, b, x: through(3 * through(x * a) * b), (V, V + 1, V), [1])
    assert names(parts.prefix_steps)["round"] == names(parts.suffix_steps)["round"] == 1


def test_rematerialised_blocks():
    block = jax.checkpoint(lambda w, x: jnp.sin(jnp.cos(x * w)))
    parts = check(lambda a, b, x: block(b, block(a, x)), (V, V + 1, V), [1])
    assert names(parts.prefix_steps)["cos"] == names(parts.suffix_steps)["cos"] == 1


def test_gradients_of_the_function_are_programs_like_any_other():
    gradient = jax.grad(lambda a, b, x: jax.nn.softmax(jax.nn.relu(x @ a) @ b)[..., 0].sum(), argnums=1)
    check(gradient, (W1, W2, X), [1])


# --- which equations go where ---------------------------------------------------------------------------------------------


def test_tied_weights_touch_from_their_first_use():
    def network(p, x):
        h = jnp.tanh(x @ p["embed"])
        h = jnp.sin(h @ p["middle"])
        return h @ p["embed"].T

    args = ({"embed": W1, "middle": W2}, X)
    tied = check(network, args, [0])
    assert not tied.prefix_steps
    assert names(tied.suffix_steps)["dot_general"] == 3
    # The other leaf leaves the transpose and the first product alone.
    assert names(check(network, args, [1]).prefix_steps) == {"dot_general": 1, "tanh": 1, "transpose": 1}


def test_a_leaf_that_nothing_uses():
    def network(p, x):
        jnp.exp(p["unused"]).sum()
        return jnp.tanh(x @ p["a"])

    parts = check(network, ({"a": W1, "unused": V}, X), [1])
    assert parts.unused
    assert not parts.suffix_steps
    assert names(parts.prefix_steps) == {"dot_general": 1, "tanh": 1}


def test_what_nothing_needs_is_left_out():
    def network(a, b, x):
        jnp.exp(x @ a)  # dropped by both halves
        return (x * a[:1]).sum() + b

    parts = check(network, (W1, jnp.float32(2), X), [1])
    assert "exp" not in names(parts.prefix_steps + parts.suffix_steps)
    assert names(parts.prefix_steps)["dot_general"] == 0


def test_only_what_the_suffix_reads_is_kept():
    def network(a, b, x):
        h = jnp.tanh(x @ a)
        return (h.sum() * b, h.mean())

    parts = check(network, (W1, jnp.float32(2), X), [1])
    # The sum, and the mean, which is an output; not the array h.
    assert len(parts.kept) == 2
    kept = jax.eval_shape(parts.prefix, [], [W1, X])
    assert [k.shape for k in kept] == [(), ()]


def test_every_equation_is_in_exactly_one_half():
    program = trace(mlp, {"a": W1, "b": W2}, X)
    for varying in ([0], [1], [2], [0, 1], [0, 1, 2], []):
        parts = split(program, varying)
        assert names(parts.prefix_steps) + names(parts.suffix_steps) == names(program.steps)


def test_several_inputs_vary_together():
    args = ({"a": W1, "b": W2}, X)
    assert len(check(mlp, args, [0, 1]).suffix_steps) == 5
    # The order in which positions are given does not matter; values are always taken in the order of the inputs.
    assert check(mlp, args, [2, 1]).varying == (1, 2)


def test_nothing_varies():
    parts, constants = parts_of(mlp, ({"a": W1, "b": W2}, X), [])
    assert parts.unused and not parts.suffix_steps
    np.testing.assert_allclose(run(parts, constants, (W1, W2, X), []), mlp({"a": W1, "b": W2}, X), rtol=1e-5)


# --- constants, literals, dtypes --------------------------------------------------------------------------------------------


def test_an_array_that_several_functions_close_over_is_one_constant():
    table = normal(4, 4)

    @jax.jit
    def first(x):
        return x @ table

    @jax.jit
    def second(x):
        return jnp.tanh(first(x) @ table)

    def network(w, x):
        return (second(x) @ table) @ w

    program = trace(network, V, X)
    assert [id(value) for value in program.constants.values()].count(id(table)) == 1
    assert sum(np.size(value) == 16 for value in program.constants.values()) == 1
    check(network, (V, X), [0])


def test_constants_are_arguments():
    table = normal(4, 4)
    parts, constants = parts_of(lambda w, x: (x @ table) @ w + table[:1, 0], (V, X), [0])
    other = [c * 3 if np.shape(c) == (4, 4) else c for c in constants]
    # Had a half compiled the constant in, other values for it would change nothing.
    np.testing.assert_allclose(run(parts, other, (V, X), [V * 2]), (X @ (3 * table)) @ V * 2 + 3 * table[:1, 0], rtol=1e-5)
    for half, args in (
        (parts.prefix, (constants, [X])),
        (parts.suffix, (parts.prefix(constants, [X]), constants, [X], [V])),
    ):
        assert not [c for c in jax.make_jaxpr(half)(*args).consts if np.shape(c) == (4, 4)]


def test_dtypes_are_kept():
    def network(w, scale, x):
        h = x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)
        index = jnp.argmax(h, axis=1)
        y = h.astype(jnp.float16) @ scale
        # Python numbers are weakly typed: they take the dtype of what stands beside them.
        return {"half": y * 2.5, "index": index + 1, "positive": y > 0, "mixed": y + x[:, 0]}

    scale = V.astype(jnp.float16)
    assert not check(network, (W1, scale, X), [0], rtol=1e-2).unused
    parts = check(network, (W1, scale, X), [1], rtol=1e-2)
    out = jax.eval_shape(parts.suffix, jax.eval_shape(parts.prefix, [], [W1, X]), [], [W1, X], [scale])
    assert {name: x.dtype.name for name, x in out.items()} == {
        "half": "float16", "index": "int32", "positive": "bool", "mixed": "float32",
    }  # fmt: skip


def test_an_output_that_is_an_input():
    parts = check(lambda w, x: {"same": w, "other": x, "sum": w + x}, (V, V + 1), [0])
    assert not parts.unused and not parts.prefix_steps


def test_an_output_that_is_the_fixed_input_alone():
    parts = check(lambda w, x: x, (V, V + 1), [0])
    assert parts.unused and not parts.suffix_steps and not parts.kept


def test_outputs_that_are_numbers():
    def function(w, x):
        return {"count": x.shape[0], "weight": 2.5, "sum": (w * x).sum()}

    parts, constants = parts_of(function, (V, V), [0])
    got = run(parts, constants, (V, V), [V * 2])
    assert (got["count"], got["weight"]) == (4, 2.5)
    assert float(got["sum"]) == pytest.approx(float((V * V * 2).sum()), rel=1e-5)


def test_random_numbers_and_keys():
    def network(w, key, x):
        first, second = jax.random.split(key)
        noise = jax.random.normal(first, x.shape)

        def step(key, row):
            key, own = jax.random.split(key)
            return key, row * w + jax.random.normal(own, row.shape)

        return jax.lax.scan(step, second, x + noise)[1]

    parts = check(network, (V, jax.random.key(0), X), [0])
    # A key goes from the prefix, which makes it, to the touched loop.
    kept = jax.eval_shape(parts.prefix, [], [jax.random.key(0), X])
    assert any(jnp.issubdtype(k.dtype, jax.dtypes.prng_key) for k in kept)


# --- transformations ----------------------------------------------------------------------------------------------------------


def test_the_suffix_maps_over_candidates():
    p = {"a": W1, "b": W2}
    parts, constants = parts_of(mlp, (p, X), [1])
    kept = parts.prefix(constants, [W1, X])
    candidates = jnp.stack([W2, 2 * W2, -W2])
    mapped = jax.jit(jax.vmap(lambda w: parts.suffix(kept, constants, [W1, X], [w])))(candidates)
    for got, w in zip(mapped, candidates, strict=True):
        np.testing.assert_allclose(got, mlp({**p, "b": w}, X), rtol=1e-5, atol=1e-6)


def test_both_halves_work_within_other_traces():
    parts, constants = parts_of(recurrent, ({"in": W1, "out": W2, "rec": W1}, X), [2])

    def loss(rec, xs):
        fixed = [W1, W2, xs]
        return jnp.square(parts.suffix(parts.prefix(constants, fixed), constants, fixed, [rec])[1]).sum()

    def direct(rec, xs):
        return jnp.square(recurrent({"in": W1, "out": W2, "rec": rec}, xs)[1]).sum()

    np.testing.assert_allclose(jax.jit(loss)(W2, X), direct(W2, X), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(loss)(W2, X), jax.grad(direct)(W2, X), rtol=1e-4, atol=1e-5)
    batched = jnp.stack([X, 2 * X])
    np.testing.assert_allclose(jax.vmap(loss, (None, 0))(W2, batched), [direct(W2, X), direct(W2, 2 * X)], rtol=1e-5)


def test_a_program_serves_other_values_of_one_shape():
    parts, constants = parts_of(mlp, ({"a": W1, "b": W2}, X), [1])
    got = run(parts, constants, (W2, W1, 3 * X), [W1])
    np.testing.assert_allclose(got, mlp({"a": W2, "b": W1}, 3 * X), rtol=1e-5)


def test_from_one_cut_to_the_next():
    # A residual branch and two parallel products: what the later cut needs is partly kept by the earlier one, partly not.
    def function(p, x):
        h = jnp.tanh(x @ p["a"])
        q, k = h @ p["b"], h @ p["c"]
        return (jnp.tanh(q) * k @ p["d"] + h + x).sum()

    p = {name: normal(4, 4) for name in "abcd"}
    program = trace(function, p, X)
    changed = {name: value + 1 for name, value in p.items()}
    for earlier, later in itertools.permutations(range(4), 2):
        first, second = split(program, [earlier]), split(program, [later])
        flat = [*p.values(), X]
        kept = first.prefix([], [v for i, v in enumerate(flat) if i != earlier])
        flat[earlier] = [*changed.values()][earlier]
        expected = second.prefix([], [v for i, v in enumerate(flat) if i != later])
        got = jax.jit(partial(first.onwards, second))(kept, [], flat)
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    # From ``b`` to ``c`` it is what ``b`` changes alone: a product and its tanh.
    b, c = split(program, [1]), split(program, [2])
    made = jax.make_jaxpr(partial(b.onwards, c))(b.prefix([], [p["a"], p["c"], p["d"], X]), [], [*p.values(), X])
    assert [e.primitive.name for e in made.eqns] == ["dot_general", "tanh"]
