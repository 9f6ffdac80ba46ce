# Owner(s): ["module: inductor"]
"""What is decided without compiling: ranges, choosing, and the fingerprint of registrations."""

import doctest
import importlib
import itertools
import json
import math
import os
import pkgutil
import random
import subprocess
import sys
import tempfile
import textwrap
import types
from pathlib import Path
from unittest import mock

import torch
from torch._guards import compile_context, CompileContext, CompileId
from torch._inductor.codegen.common import custom_backend_codegen_configs
from torch._inductor.kernel import custom_op, range_dispatch
from torch._inductor.kernel.range_dispatch import config, fingerprint
from torch._inductor.kernel.range_dispatch.candidates import CustomOpConfig
from torch._inductor.kernel.range_dispatch.choosing import choose, Measurement, Rules
from torch._inductor.kernel.range_dispatch.ranges import (
    merge_neighbours,
    Range,
    ranges_from_split_points,
    reachable,
)
from torch._inductor.kernel.range_dispatch.registration import make_registration
from torch._inductor.test_case import TestCase
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


MODULES = [
    custom_op.__name__,
    *(f"{range_dispatch.__name__}.{m.name}" for m in pkgutil.iter_modules(range_dispatch.__path__)),
]


class TestDoctests(TestCase):
    @parametrize("module", MODULES, name_fn=lambda module: module.rpartition(".")[2])
    def test_examples(self, module):
        result = doctest.testmod(importlib.import_module(module))
        self.assertEqual(result.failed, 0)

    def test_there_are_examples(self):
        """Of the public API, and where a rule is best shown."""
        finder = doctest.DocTestFinder(recurse=False)
        for thing in (
            custom_op.register_custom_op_autotuning,
            CustomOpConfig,
            Range,
            ranges_from_split_points,
            reachable,
            merge_neighbours,
            choose,
        ):
            (found,) = finder.find(thing, thing.__name__)
            self.assertGreater(len(found.examples), 0, thing)


class TestRanges(TestCase):
    @parametrize(
        "start, end, rule",
        [(-1, 4, "start=-1"), (5, 4, "5..4"), (0, 4.5, "end=4.5"), (3, -math.inf, "3..-inf")],
    )
    def test_no_range(self, start, end, rule):
        with self.assertRaisesRegex(ValueError, rule.replace("..", r"\.\.")):
            Range(start, end)

    def test_every_size_is_in_one_range(self):
        rng = random.Random(0)
        for _ in range(50):
            points = sorted(rng.sample(range(1, 60), rng.randint(1, 6)))
            ranges = ranges_from_split_points(points)
            self.assertEqual(len(ranges), len(points) + 1)
            self.assertEqual([r.bounded for r in ranges], [True] * len(points) + [False])
            for size in range(70):
                (found,) = [i for i, r in enumerate(ranges) if r.contains(size)]
                self.assertEqual(found, sum(size > point for point in points))

    def test_probe(self):
        self.assertEqual(Range(0, 512).probe(65536), 512)
        self.assertEqual(Range(3, 3).probe(65536), 3)
        self.assertEqual(Range(513, math.inf).probe(4096), 4096)
        self.assertEqual(Range(513, math.inf).probe(100), 513)
        for r in ranges_from_split_points([1, 2, 90]):
            for upper in (1, 91, 4096):
                self.assertTrue(r.contains(r.probe(upper)))
                self.assertIs(type(r.probe(upper)), int)

    def test_reachable(self):
        ranges = ranges_from_split_points([4, 8, 16])
        for low in range(20):
            for high in (*range(low, 20), math.inf):
                sizes = range(low, 40 if high == math.inf else high + 1)
                wanted = tuple(r for r in ranges if any(map(r.contains, sizes)))
                self.assertEqual(reachable(ranges, low, high), wanted)
        self.assertEqual(reachable(ranges, -math.inf, math.inf), ranges)

    def test_merged_ranges_give_every_size_the_same_winner(self):
        rng = random.Random(0)
        for _ in range(100):
            points = sorted(rng.sample(range(1, 40), rng.randint(1, 6)))
            ranges = ranges_from_split_points(points)
            low = rng.randint(0, 20)
            able = reachable(ranges, low, rng.choice([low, low + 9, math.inf]))
            winners = [(r, rng.choice("ab")) for r in able]
            merged = merge_neighbours(winners, lambda x, y: x == y)
            for (one, a), (other, b) in itertools.pairwise(merged):
                self.assertLess(one.end, other.start)
                self.assertNotEqual(a, b)
            for r, winner in winners:
                for size in {r.start, r.probe(50)}:
                    (found,) = [w for m, w in merged if m.contains(size)]
                    self.assertEqual(found, winner)

    def test_merging_keeps_the_lower_winner_and_only_joins_neighbours(self):
        ranges = ranges_from_split_points([1, 2, 3])
        merged = merge_neighbours(
            list(zip(ranges, ["a", "A", "b", "a"], strict=True)),
            lambda x, y: x.lower() == y.lower(),
        )
        self.assertEqual(
            merged, [(Range(0, 2), "a"), (Range(3, 3), "b"), (Range(4, math.inf), "a")]
        )
        self.assertEqual(merge_neighbours([], lambda x, y: True), [])


def table(*rows, spread=0.0):
    """Rows of measurements of ``a``, ``b``, ... and, last, of the op; None for a failed one."""
    return [
        [
            Measurement(label, math.inf, error="it fails")
            if time is None
            else Measurement(label, float(time), spread)
            for label, time in zip([*"abcdefg"[: len(row) - 1], "op"], row, strict=True)
        ]
        for row in rows
    ]


class TestChoosing(TestCase):
    def check(self, rows, winners, **rules):
        self.assertEqual("".join(w[0] for w in choose(rows, Rules("op", **rules))), winners)

    def test_fastest_wins(self):
        self.check(table((1, 2, 3), (2, 1, 3), (3, 2, 1)), "abo")

    def test_ties_go_to_the_first_registered(self):
        self.check(table((1, 1, 3)), "a")
        self.check(table((2, 1, 1, 3)), "b")
        self.check(table((1, 2, 3), (1, 1, 3), (2, 1, 3)), "aab")
        self.check(table((1, 1, 1), (1, 1, 1)), "oo")  # nothing beats the op

    def test_order_of_the_plan_not_of_the_labels(self):
        """Registered in the other order, the other one wins a tie."""
        rows = table((1, 1, 3))
        rows[0][:2] = reversed(rows[0][:2])
        self.check(rows, "b")

    def test_threshold(self):
        self.check(table((1, 2, 2)), "a", threshold=2)
        self.check(table((1.01, 2, 2)), "o", threshold=2)
        self.check(table((2, 3, 2)), "o")
        self.check(table((2.5, 3, 2)), "a", threshold=0.5, force=True)
        # Slower than the op is never right, however low the threshold.
        self.check(table((2.5, 3, 2)), "o", threshold=0.5)

    def test_threshold_without_the_op(self):
        """Where the op does not compete, nothing has to beat it."""
        rows = [row[:-1] for row in table((1, 2, 0), (2, 1, 0))]
        self.check(rows, "ab")

    def test_noise(self):
        self.check(table((1, 1.01, 3), (2.02, 2, 3)), "bb", noise=0.02)
        self.check(table((1, 1.01, 3), (2.02, 2, 3)), "ab")
        self.check(table((1, 1.03, 3), (2.05, 2, 3)), "ab", noise=0.02)

    def test_spread_counts_where_it_is_larger(self):
        rows = ((1, 1.2, 3), (1.3, 1, 3))
        self.check(table(*rows, spread=0.05), "ab", noise=0.02)
        self.check(table(*rows, spread=0.09), "ab")
        self.check(table(*rows, spread=0.11), "bb")
        self.check(table(*rows, spread=0.01), "bb", noise=0.25)

    def test_noise_does_not_make_the_op_lose_to_what_is_slower(self):
        self.check(table((1.005, 3, 1), (1, 3, 2)), "oa", noise=0.02)

    def test_fewest_changes_within_the_noise(self):
        # In the middle c is the fastest by less than the noise.
        self.check(table((1, 2, 9, 10), (1, 2, 0.99, 10), (1, 2, 9, 10)), "aaa", noise=0.02)
        self.check(table((1, 2, 9, 10), (1, 2, 0.5, 10), (1, 2, 9, 10)), "aca", noise=0.02)

    def test_force(self):
        rows = table((2, 3, 1), (3, 2, 1))
        self.check(rows, "oo")
        self.check(rows, "ab", force=True)
        self.check(table((1, 2, 3), (2, 1, 3)), "oo", force=False)
        # Where no implementation runs, the op has to.
        self.check(table((1, 2, 3), (None, None, 3)), "ao", force=True)
        self.check([], "", force=True)

    def test_failed_candidates_are_out_for_their_range_only(self):
        self.check(table((1, 2, 3), (None, 2, 3)), "ab")
        self.check(table((None, None, 3), (1, 2, 3)), "oa")
        self.check(table((None, 2, None), (1, 2, None)), "ba")
        self.check(table((None, None, None)), "o")
        self.check(table((None, None, None), (1, 2, 3)), "oa")

    def test_unmeasured_rows_take_any(self):
        a, b = table((1, 2, 3), (2, 1, 3))
        self.check([[], a, b], "aab")
        self.check([a, [], b], "aab")
        self.check([a, b, []], "abb")
        self.check([a, [], a], "aaa")
        self.check([[], []], "oo")
        self.check([], "")

    def test_no_rows_of_candidates_is_the_op(self):
        self.check([[], [], []], "ooo")
        self.check([[Measurement("op", 0.0)]], "o")
        # A single contestant is not measured, and wins.
        self.check([[Measurement("a", 0.0)], [Measurement("a", 0.0)]], "aa")

    def test_single_in_place_of_a_plan_that_is_not_better(self):
        # Within the noise a is as good in the first range, and better to change for than b...
        rows = table((101, 100, 100, 200), (9, 3, 1, 10))
        self.check(rows, "cc", noise=0.02)
        # ... but what is not better in total by the threshold is not worth a dispatch.
        rows = table((1, 1.9, 4), (1.9, 1, 4))
        self.check(rows, "ab")
        self.check(rows, "ab", threshold=1.4)
        self.check(rows, "aa", threshold=1.5)

    def test_single_is_never_slower_than_the_op_where_it_is_measured(self):
        # In total a takes as long as the op; in the second range it is slower.
        rows = table((1, 9, 2), (3, 9, 2))
        self.check(rows, "ao")
        self.check(rows, "oo", threshold=2)
        # In total b alone is the fastest: in the first range, where a is as good but for noise, it
        # wins more than it loses to the op in the others.
        rows = table((1010, 1000, 2000), (3, 5, 4), (9, 5, 3))
        self.check(rows, "aao", noise=0.02)


def drawn_table(rng):
    labels = ["a", "b", "c", "op"][: rng.randint(2, 4)]
    if rng.random() < 0.7 and "op" not in labels:
        labels.append("op")
    times = rng.choice([[1.0, 2.0, 3.0], [1.0, 1.01, 1.02, 1.5], [i / 7 for i in range(3, 30)]])
    rows = []
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.1:
            rows.append([])
            continue
        rows.append(
            [
                Measurement(label, math.inf if rng.random() < 0.1 else rng.choice(times), spread)
                for label in labels
                for spread in [rng.choice([0.0, 0.0, 0.02])]
            ]
        )
    return rows


def allowed_by_the_rules(row, rules):
    """Labels that may win a row, written from the rules rather than from the code."""
    times = {m.label: m for m in row if m.milliseconds < math.inf}
    op = times.get(rules.op)
    implementations = {k: m for k, m in times.items() if k != rules.op}
    if op is not None and not rules.force:
        limit = op.milliseconds / rules.threshold
        implementations = {
            k: m
            for k, m in implementations.items()
            if m.milliseconds < op.milliseconds and m.milliseconds <= limit * (1 + 1e-12)
        }
    able = dict(implementations)
    if op is not None and not (rules.force and implementations):
        able[rules.op] = op
    if not able:
        return {rules.op}, set()
    fastest = min(able.values(), key=lambda m: m.milliseconds)
    good = {
        k
        for k, m in able.items()
        if m.milliseconds
        <= fastest.milliseconds + max(rules.noise * fastest.milliseconds, m.spread + fastest.spread)
    }
    return good, set(able)


def brute_force(rows, rules):
    """The best of all plans, tried one by one."""
    labels = list(dict.fromkeys([*(m.label for row in rows for m in row), rules.op]))
    if rules.force is False or not any(rows):
        return [rules.op] * len(rows)
    times = [{m.label: m.milliseconds for m in row} for row in rows]
    sets = [allowed_by_the_rules(row, rules) if row else (set(labels), set(labels)) for row in rows]

    def total(plan):
        return sum(t.get(label, 0.0) for t, label in zip(times, plan, strict=True))

    def cost(plan):
        changes = sum(x != y for x, y in itertools.pairwise(plan))
        return changes, total(plan), [labels.index(label) for label in plan]

    best = min(itertools.product(*(good for good, _ in sets)), key=cost)
    singles = [
        x
        for x in labels
        if all(x in able for (_, able), row in zip(sets, rows, strict=True) if row)
    ]
    if singles and len(set(best)) > 1:
        single = min(singles, key=lambda x: (total([x] * len(rows)), labels.index(x)))
        alone = total([single] * len(rows))
        if total(best) >= alone or total(best) * rules.threshold > alone:
            return [single] * len(rows)
    return list(best)


class TestChoosingDrawn(TestCase):
    def test_against_all_plans(self):
        rng = random.Random(0)
        lengths = set()
        for number in range(3000):
            rows = drawn_table(rng)
            rules = Rules(
                "op",
                threshold=rng.choice([1.0, 1.0, 1.2, 2.0, 0.9]),
                noise=rng.choice([0.0, 0.02, 0.5]),
                force=rng.choice([None, None, None, True, False]),
            )
            plan = choose(rows, rules)
            self.assertEqual(plan, brute_force(rows, rules), f"table {number}: {rows} {rules}")
            self.assertEqual(plan, choose([list(row) for row in rows], rules))
            lengths.add(len(set(plan)))
        self.assertGreaterEqual(lengths, {1, 2, 3})

    def test_never_slower_than_the_op(self):
        rng = random.Random(1)
        for _ in range(1000):
            rows = drawn_table(rng)
            rules = Rules("op", noise=rng.choice([0.0, 0.1]))
            for row, winner in zip(rows, choose(rows, rules), strict=True):
                times = {m.label: m.milliseconds for m in row}
                if "op" in times:
                    self.assertLessEqual(times[winner], times["op"])

    def test_names_do_not_matter(self):
        """Renamed, the same measurements give the renamed plan: only the order breaks ties."""
        rng = random.Random(2)
        for _ in range(300):
            rows = drawn_table(rng)
            names = dict(zip(["a", "b", "c", "op"], rng.sample("wxyz", 4), strict=True))
            renamed = [
                [Measurement(names[m.label], m.milliseconds, m.spread, m.error) for m in row]
                for row in rows
            ]
            plan = choose(rows, Rules("op", noise=0.02))
            self.assertEqual(
                choose(renamed, Rules(names["op"], noise=0.02)), [names[label] for label in plan]
            )


# ---------------------------------------------------------------------------------------------
# The fingerprint.

IMPLEMENTATIONS = """
    import functools, logging, types
    import sympy
    import torch
    from torch._inductor.kernel.range_dispatch.candidates import CustomOpConfig

    K = 3
    SIZES = {"small": [1, 2]}
    log = logging.getLogger(__name__)
    settings = types.SimpleNamespace(block=4)
    helpers = types.ModuleType("helpers")
    exec("def help(x): return x * 1.5", helpers.__dict__)

    @functools.lru_cache
    def cached(n):
        return n + 100

    def helper(x):
        return x * 7

    def function(x, block=1, *, mode="fast"):
        '''What it says is not what it does.'''
        if mode in {"fast", "slow", "other"}:
            return helper(x) + K * 2.5
        return x

    def nested(x):
        def inner(y):
            return helper(y) + sum(SIZES["small"]) + torch.ones(()) + int(sympy.Integer(1))
        return [inner(z) for z in x]

    def through_module(x):
        log.debug("through the module")
        return helpers.help(x) + settings.block + cached(3)

    def closing(scale, table):
        def implementation(x):
            return x * scale + table["offset"] + weight
        weight = torch.arange(3.0)
        return implementation

    def recursive(x, n=3):
        return recursive(x + 1, n - 1) if n else x

    class Base:
        factor = 10

        def run(self, x):
            return x * self.factor

    class Implementation(Base):
        def __init__(self, scale):
            self.scale = scale
            self.again = self

        def __call__(self, x):
            return self.run(x) * self.scale

        @property
        def half(self):
            return self.scale / 2

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((3,), 11.0))

        def forward(self, x):
            return x + self.weight

    @torch.library.custom_op("range_dispatch_pure::other", mutates_args=())
    def other(x: torch.Tensor) -> torch.Tensor:
        return x * 12

    configs = {
        "function": CustomOpConfig(function),
        "parameters": CustomOpConfig(function, block=21, mode="slow"),
        "patches": CustomOpConfig(function, {"max_autotune": True}),
        "nested": CustomOpConfig(nested),
        "through_module": CustomOpConfig(through_module),
        "lambda": CustomOpConfig(lambda x: x * 22),
        "closure": CustomOpConfig(closing(31, {"offset": 32})),
        "recursive": CustomOpConfig(recursive),
        "partial": CustomOpConfig(functools.partial(function, block=41, mode="other")),
        "method": CustomOpConfig(Implementation(51).run),
        "object": CustomOpConfig(Implementation(52)),
        "module": CustomOpConfig(Module()),
        "custom op": CustomOpConfig(other),
        "overload": CustomOpConfig(torch.ops.aten.mul.Tensor),
        "builtin": CustomOpConfig(torch.mul),
        "set": CustomOpConfig(function, block=frozenset({"a", "b", "c"})),
        "twice": CustomOpConfig(functools.partial(max, helper, nested, helper)),
    }
"""

# What is changed in the source, and the configs whose description has to change with it.
CHANGES = {
    "constant": ("K * 2.5", "K * 2.25", "function parameters patches partial set"),
    "integer": ("n + 100", "n + 101", "through_module"),
    "type of a constant": ("n + 100", "n + 100.0", "through_module"),
    "default": ("block=1, *", "block=2, *", "function parameters patches partial set"),
    "keyword default": ('mode="fast"', 'mode="slow"', "function parameters patches partial set"),
    "global": ("K = 3", "K = 4", "function parameters patches partial set"),
    "content of a global": ("[1, 2]", "[1, 3]", "nested twice"),
    "attribute of a global": ("(block=4)", "(block=5)", "through_module"),
    "function that is called": (
        "x * 7",
        "x * 8",
        "function parameters patches partial set nested twice",
    ),
    "function of a module": ("x * 1.5", "x * 2.5", "through_module"),
    "operator": ("return x * scale", "return x - scale", "closure"),
    "closure": ("closing(31", "closing(33", "closure"),
    "content of a closure": ('"offset": 32', '"offset": 33', "closure"),
    "tensor": ("arange(3.0)", "arange(1.0, 4.0)", "closure"),
    "weight": ("11.0", "11.5", "module"),
    "class attribute": ("factor = 10", "factor = 11", "method object"),
    "inherited method": ("x * self.factor", "x + self.factor", "method object"),
    "other method": ("self.scale / 2", "self.scale / 3", "method object"),
    "attribute": ("Implementation(51)", "Implementation(53)", "method"),
    "parameter": ("block=21", "block=22", "parameters"),
    "type of a parameter": ("block=21", "block=21.0", "parameters"),
    "patch": ('"max_autotune": True', '"max_autotune": False', "patches"),
    "name of a patch": ("max_autotune", "coordinate_descent_tuning", "patches"),
    "partial": ("block=41", "block=42", "partial"),
    "lambda": ("x * 22", "x * 23", "lambda"),
    "recursion": ("x + 1, n", "x + 2, n", "recursive"),
    "overload": ("mul.Tensor", "add.Tensor", "overload"),
    "builtin": ("(torch.mul)", "(torch.add)", "builtin"),
    "custom op": ("x * 12", "x * 13", "custom op"),
    "set": ('{"a", "b", "c"}', '{"a", "b", "d"}', "set"),
    "which of two": ("helper, nested, helper)", "helper, nested, nested)", "twice"),
    "docstring": ("is not what", "is what", "function parameters patches partial set"),
    "comment": ("if n else x", "if n else x  # done", ""),
    "nothing": ("", "", ""),
}


def configs_of(source):
    """The configs that the source of a module makes."""
    module = types.ModuleType("range_dispatch_pure_source")
    exec(textwrap.dedent(source), module.__dict__)
    return module.configs


def op():
    return torch.ops.aten.mul.Tensor


def described(*configs, **changes):
    given = {
        "config_generator": None,
        "name": None,
        "input_gen_fns": None,
        "dispatch_on": {"tensor_name": "self", "dim": 0},
        "split_points": [4],
        "min_speedup_threshold": 1.0,
        "benchmark_with_cudagraphs": False,
        "include_fallback": True,
        **changes,
    }
    return fingerprint.describe(make_registration(op(), list(configs) or None, **given))


def in_new_process(script, **variables):
    """What a script prints as JSON on its last line, in a process of its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(textwrap.dedent(script))
        file.flush()
        output = subprocess.run(
            [sys.executable, file.name],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )
    if output.returncode:
        raise AssertionError(f"{output.stdout}\n{output.stderr}")
    return json.loads(output.stdout.strip().splitlines()[-1])


class TestFingerprint(TestCase):
    @parametrize("change", list(CHANGES), name_fn=lambda change: change.replace(" ", "_"))
    def test_changes_with_what_is_generated(self, change):
        old, new, affected = CHANGES[change]
        self.assertIn(old, IMPLEMENTATIONS)
        one = {k: described(c) for k, c in configs_of(IMPLEMENTATIONS).items()}
        other = {k: described(c) for k, c in configs_of(IMPLEMENTATIONS.replace(old, new)).items()}
        changed = [name for name in one if one[name] != other[name]]
        wanted = [name for name in one if f" {name} " in f" {affected} "]
        if affected == "custom op":
            wanted = ["custom op"]
        self.assertEqual(changed, wanted)

    def test_configs_differ_from_each_other(self):
        texts = [described(c) for c in configs_of(IMPLEMENTATIONS).values()]
        self.assertEqual(len(set(texts)), len(texts))

    def test_changes_with_the_registration(self):
        config = CustomOpConfig(torch.mul)
        texts = [
            described(config),
            described(config, CustomOpConfig(torch.add)),
            described(CustomOpConfig(torch.add), config),
            described(config, split_points=[5]),
            described(config, split_points=[4, 5]),
            described(config, dispatch_on={"tensor_name": "other", "dim": 0}),
            described(config, dispatch_on={"tensor_name": "self", "dim": 1}),
            described(
                config, dispatch_on={"tensor_name": "self", "dim": 0, "range_upper_bound": 9}
            ),
            described(config, dispatch_on=None, split_points=None),
            described(config, min_speedup_threshold=1.1),
            described(config, include_fallback=False),
            described(config, benchmark_with_cudagraphs=True),
            described(config, name="another"),
            described(config, input_gen_fns={"self": torch.randn_like}),
            described(config, input_gen_fns={"other": torch.randn_like}),
            described(config, input_gen_fns={"self": torch.zeros_like}),
            described(config, input_gen_fns={"self": lambda fake: torch.zeros_like(fake)}),
            described(config, input_gen_fns={"self": lambda fake: torch.ones_like(fake)}),
            described(config_generator=lambda tensors: [config]),
            described(config_generator=lambda tensors: [config, config]),
        ]
        self.assertEqual(len(set(texts)), len(texts))

    def test_what_cannot_be_described_is_another_one_each_time(self):
        class Refuses:
            __slots__ = ()

            def __call__(self, x):
                return x

        class Raises:
            def __call__(self, x):
                return x

            @property
            def __dict__(self):
                raise RuntimeError("not readable")

        for implementation in (Refuses(), Raises()):
            config = CustomOpConfig(implementation)
            self.assertNotEqual(described(config), described(config))

    def test_large_tensors_are_told_apart(self):
        one, other = torch.zeros(70_000), torch.zeros(70_000)
        same = CustomOpConfig(lambda x, t=one: x)
        self.assertEqual(described(same), described(same))
        implementation = same.decomposition
        before = described(same)
        implementation.__defaults__ = (other,)
        self.assertNotEqual(described(same), before)

    def test_endless_values(self):
        held = []
        held.append(held)
        table = {}
        table["self"] = (table, held)
        text = described(CustomOpConfig(lambda x: (held, table)))
        self.assertEqual(text, described(CustomOpConfig(lambda x: (held, table))))
        chain = None
        for _ in range(5000):
            chain = [chain]
        self.assertIn("configs=", described(CustomOpConfig(lambda x: chain)))

    def test_same_in_every_process(self):
        script = textwrap.dedent(IMPLEMENTATIONS) + textwrap.dedent(
            """
            import json
            from torch._inductor.kernel.range_dispatch import fingerprint
            from torch._inductor.kernel.range_dispatch.registration import make_registration
            def described(config):
                on = {"tensor_name": "self", "dim": 0}
                return fingerprint.describe(make_registration(
                    torch.ops.aten.mul.Tensor, [config], None, None, None, on, [4], 1.0, False, True
                ))
            print(json.dumps({name: described(config) for name, config in configs.items()}))
            """
        )
        one, other = (in_new_process(script, PYTHONHASHSEED=seed) for seed in ("1", "2"))
        self.assertEqual(len(one), len(configs_of(IMPLEMENTATIONS)))
        for name in one:
            self.assertEqual(one[name], other[name], name)

    def test_publish(self):
        """Nothing registered leaves stock's keys; the order of registering does not matter."""
        self.assertEqual(config.registrations, "")
        ops = torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor
        configs = [CustomOpConfig(torch.mul)]
        seen = set()
        for order in (ops, ops[::-1]):
            for one in order:
                custom_op.register_custom_op_autotuning(one, configs)
                self.addCleanup(custom_op.unregister_custom_op_autotuning, one)
            seen.add(config.registrations)
            with custom_op.custom_op_autotuning(ops[0], [CustomOpConfig(torch.sub)]):
                self.assertNotIn(config.registrations, seen)
            self.assertIn(config.registrations, seen)
            for one in order:
                custom_op.unregister_custom_op_autotuning(one)
            self.assertEqual(config.registrations, "")
        self.assertEqual(len(seen), 1)
        self.assertNotIn("", seen)

    def test_what_is_registered_is_described_when_a_key_is_made(self):
        """A helper may be defined below, and a global changed after, what registers an op."""
        scope = {"__name__": "a_module_of_the_user"}
        exec("def function(x): return helper(x) * FACTOR", scope)
        op = torch.ops.aten.mul.Tensor
        custom_op.register_custom_op_autotuning(op, [CustomOpConfig(scope["function"])])
        self.addCleanup(custom_op.unregister_custom_op_autotuning, op)
        keyed = custom_backend_codegen_configs["range_dispatch"]

        def key():
            return keyed.save_config_portable(ignore_private_configs=False)["registered"]

        seen = [config.registrations]
        self.assertEqual(key(), seen[0])
        for change in ("def helper(x): return x", "def helper(x): return x + 1", "FACTOR = 2"):
            exec(change, scope)
            seen.append(key())
            self.assertEqual(key(), seen[-1])
        self.assertEqual(len(set(seen)), 4)
        # Within one compilation it is asked for several times.
        for described in seen[:2]:  # numbers of compilations come again after a reset
            compilation = CompileContext(CompileId(frame_id=7, frame_compile_id=0))
            once = mock.patch.object(fingerprint, "describe", side_effect=[described])
            with compile_context(compilation), once:
                seen.append(key())
                self.assertEqual(key(), seen[-1])
        self.assertEqual(len(set(seen)), 6)


CACHED = """
    import json
    import torch
    import torch._functorch.config as functorch_config
    from torch._dynamo.utils import counters
    from torch._inductor import config as inductor_config
    from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning

    ran = []

    def define(name):
        def function(x: torch.Tensor) -> torch.Tensor:
            ran.append(name)
            return x + 1
        op = torch.library.custom_op(f"range_dispatch_cached::{name}", function, mutates_args=())
        op.register_fake(torch.empty_like)
        return op

    plain, one, other = define("plain"), define("one"), define("other")

    def implementation(x):
        return torch.ops.range_dispatch_cached.ONE(x)

    register_custom_op_autotuning(
        plain,
        configs=[CustomOpConfig(implementation)],
        dispatch_on={"tensor_name": "x", "dim": 0},
        split_points=[4],
        include_fallback=False,
        check=False,
    )
    found = {}
    for cache in ("fx_graph", "aot_autograd"):
        torch._dynamo.reset()
        counters.clear()
        ran.clear()
        with (
            inductor_config.patch(fx_graph_cache=True, fx_graph_remote_cache=False),
            functorch_config.patch(enable_autograd_cache=cache == "aot_autograd"),
        ):
            x = torch.ones(5, 3)
            right = torch.equal(torch.compile(plain, dynamic=True)(x), x + 1)
        hits = {
            "fx_graph": counters["inductor"]["fxgraph_cache_hit"],
            "aot_autograd": counters["aot_autograd"]["autograd_cache_hit"],
        }
        bypassed = counters["inductor"]["fxgraph_cache_bypass"]
        found[cache] = [right, ran[:], hits[cache], bypassed]
    print(json.dumps(found))
"""


class TestCaches(TestCase):
    def test_a_changed_implementation_is_not_served_the_old_code(self):
        with tempfile.TemporaryDirectory() as folder:
            runs = [
                in_new_process(CACHED.replace("ONE", name), TORCHINDUCTOR_CACHE_DIR=folder)
                for name in ("one", "one", "other", "one")
            ]
        for cache in ("fx_graph", "aot_autograd"):
            shown = [run[cache] for run in runs]
            self.assertEqual(
                shown,
                [
                    [True, ["one"], 0, 0],
                    [True, ["one"], 1, 0],
                    [True, ["other"], 0, 0],
                    [True, ["one"], 1, 0],
                ],
                cache,
            )

    def test_the_files_of_the_patch_are_part_of_the_key(self):
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder, "range_dispatch")
            package.mkdir()
            (package / "fingerprint.py").write_text("")
            hashes = set()
            with mock.patch.object(fingerprint, "__file__", str(package / "fingerprint.py")):
                for name in ("range_dispatch/ir.py", "range_dispatch/ir.py", "custom_op.py"):
                    with open(Path(folder, name), "a") as file:
                        file.write("x = 1\n")
                    hashes.add(fingerprint.own_source.__wrapped__())
        self.assertEqual(len(hashes), 3)


instantiate_parametrized_tests(TestDoctests)
instantiate_parametrized_tests(TestRanges)
instantiate_parametrized_tests(TestFingerprint)


if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    run_tests()
