# Owner(s): ["module: inductor"]
"""What code written for stock's custom op tuning relies on: names, switches, counters, forms.

PyTorch's own tests of this interface look at the same things; here they run on a CPU as well.
"""

import ast
import inspect
import re
import unittest
from unittest import mock

from range_dispatch_common import (
    config,
    counters,
    custom_op,
    define_op,
    DEVICES,
    force_winners,
    GPU_TYPE,
    HAS_CPU,
    HAS_GPU,
    inductor_config,
    OP_LABEL,
    RangeDispatchTestCase,
    report,
    stock_custom_op,
)

import torch
from torch._inductor import lowering
from torch._inductor.kernel.custom_op import (
    CustomOpConfig,
    ImplConfig,
    RangeBounds,
    RangeImplGroup,
    register_custom_op_autotuning,
)
from torch._inductor.runtime.benchmarking import Benchmarker
from torch._inductor.select_algorithm import ExternKernelChoice
from torch._inductor.utils import get_k_splits, run_and_get_code
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


# Defined in stock's module of any supported release, and not for that module's use alone.
NAMES = (
    "CustomOpConfig",
    "DEFAULT_RANGE_UPPER_BOUND",
    "DispatchOnConfig",
    "ImplConfig",
    "RangeBounds",
    "RangeImplGroup",
    "_create_fallback_choice",
    "autotune_custom_op",
    "log",
    "register_custom_op_autotuning",
)
SHAPE_COMPARISON = re.compile(r"\bif\s+s\d+\s*[<>=]")


def stock_module():
    """The syntax tree of stock's module: beside the overlay, or what a landing has kept."""
    path = stock_custom_op()
    if path.samefile(custom_op.__file__):
        return None  # built from a tree with the patch in it: there is no stock's to look at
    return ast.parse(path.read_text())


def defined_in(module):
    """Names that are assigned or defined at the top level, without imports."""
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.AnnAssign):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets)


def members_of(module, name):
    (found,) = [n for n in module.body if getattr(n, "name", None) == name]
    return found


class NamesTest(RangeDispatchTestCase):
    def setUp(self):
        super().setUp()
        self.stock = stock_module()

    def test_names_of_all_releases(self):
        for name in NAMES:
            self.assertTrue(hasattr(custom_op, name), name)

    def test_no_public_name_of_this_release_is_missing(self):
        if self.stock is None:
            self.skipTest("stock's module is not here")
        public = {name for name in defined_in(self.stock) if not name.startswith("_")}
        self.assertIn("RangeImplGroup", public)
        self.assertEqual([name for name in public if not hasattr(custom_op, name)], [])
        self.assertEqual(public - set(NAMES), set())
        (exported,) = [
            ast.literal_eval(node.value)
            for node in self.stock.body
            if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
        ]
        self.assertEqual(set(exported) - set(custom_op.__all__), set())

    @parametrize(
        "name", ["register_custom_op_autotuning", "autotune_custom_op", "CustomOpConfig.__init__"]
    )
    def test_parameters_are_those_of_stock(self, name):
        if self.stock is None:
            self.skipTest("stock's module is not here")
        outer, _, inner = name.partition(".")
        node = members_of(self.stock, outer)
        function = getattr(custom_op, outer)
        if inner:
            node, function = members_of(node, inner), getattr(function, inner)
        parameters = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ]
        # Stock of 2.11 has one that nothing but its own lowering passes.
        wanted = [a.arg for a in node.args.args if a.arg != "return_choice"]
        self.assertEqual([p.name for p in parameters][: len(wanted)], wanted)
        given = node.args.defaults
        defaults = dict(zip([a.arg for a in node.args.args][-len(given) :], given, strict=True))
        for parameter in parameters[: len(wanted)]:
            if parameter.name in defaults:
                value = ast.literal_eval(defaults[parameter.name])
                self.assertEqual(parameter.default, value, parameter.name)
        for parameter in parameters[len(wanted) :]:
            self.assertIsNot(parameter.default, inspect.Parameter.empty, parameter.name)

    @parametrize("name", ["RangeBounds", "ImplConfig", "RangeImplGroup"])
    def test_members_are_those_of_stock(self, name):
        if self.stock is None:
            self.skipTest("stock's module is not here")
        cls = getattr(custom_op, name)
        for node in members_of(self.stock, name).body:
            member = getattr(node, "name", None) or getattr(getattr(node, "target", 0), "id", None)
            if member is not None:
                self.assertTrue(hasattr(cls, member) or member in cls.__dataclass_fields__, member)

    def test_range_bounds(self):
        bounds = RangeBounds(5, 8)
        self.assertEqual([n for n in range(12) if bounds.contains(n)], [5, 6, 7, 8])
        self.assertTrue(RangeBounds(9, float("inf")).contains(10**9))
        self.assertFalse(RangeBounds(9, float("inf")).contains(8))
        self.assertEqual(str(bounds), "[5, 8]")
        self.assertEqual(str(RangeBounds(9, float("inf"))), "[9, inf]")
        self.assertEqual(len({bounds, RangeBounds(5, 8), RangeBounds(5, 9)}), 2)
        for start, end in ((0, 4), (-1, 4), (5, 4)):
            with self.assertRaises(ValueError):
                RangeBounds(start, end)

    def test_impl_config(self):
        one = ImplConfig("f", max, {"b": 2, "a": 1})
        same = ImplConfig(impl_name="f", impl_func=min, kwargs={"a": 1, "b": 2})
        self.assertEqual(one, same)
        self.assertEqual(len({one, same, ImplConfig("f", max), ImplConfig("g", max)}), 3)
        self.assertNotEqual(one, "f")
        self.assertEqual(str(one), "f(a=1, b=2)")
        self.assertEqual(str(ImplConfig("f", max)), "f")
        self.assertEqual(one.config_patches, {})
        patched = ImplConfig("f", max, {"b": 2, "a": 1}, config_patches={"x": 1})
        self.assertEqual(patched, one)  # what it runs under is no part of stock's identity

    def test_range_impl_group(self):
        impl = ImplConfig("f", max, {"k": 2}, {"patch": True})
        group = RangeImplGroup(impl)
        group.add_range(RangeBounds(9, float("inf")))
        group.add_range(RangeBounds(1, 4))
        self.assertEqual(group.ranges, [RangeBounds(1, 4), RangeBounds(9, float("inf"))])
        self.assertEqual(str(group), "f: [1, 4], [9, inf]")
        self.assertEqual((group.impl_name, group.impl_func), ("f", max))
        self.assertEqual((group.impl_kwargs, group.config_patches), ({"k": 2}, {"patch": True}))

    def test_fallback_choice(self):
        op = define_op("upstream_choice", lambda x: x.clone(), schema="(Tensor x) -> Tensor")
        other = define_op("upstream_choice2", lambda x: x.clone(), schema="(Tensor x) -> Tensor")
        choice = custom_op._create_fallback_choice(op._opoverload)
        self.assertIs(custom_op._create_fallback_choice(op._opoverload), choice)
        self.assertIsInstance(choice, ExternKernelChoice)
        self.assertIs(choice.op_overload, op._opoverload)
        self.assertIsNot(custom_op._create_fallback_choice(other._opoverload), choice)
        x = torch.randn(3)
        self.assertEqual(choice.to_callable()(x), x)

    def test_fallback_choice_of_an_op_that_is_defined_again(self):
        choices = []
        for factor in (2.0, 3.0):
            with torch.library._scoped_library("range_dispatch_scoped", "DEF") as library:
                library.define("again(Tensor x) -> Tensor")
                library.impl("again", lambda x, f=factor: x * f, "CompositeExplicitAutograd")
                op = torch.ops.range_dispatch_scoped.again.default
                choices.append(custom_op._create_fallback_choice(op))
                self.assertIs(choices[-1].op_overload, op)
                self.assertEqual(choices[-1].to_callable()(torch.ones(2)), torch.ones(2) * factor)
        self.assertIsNot(choices[0], choices[1])


def scaled(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return x * scale


def by_sum(x, scale=1.0):
    return x * (scale / 2) + x * (scale / 2)


def matmul(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ w


def split_k(x, w, k_splits=4):
    m, k = x.shape
    parts = x.reshape(m, k_splits, k // k_splits).permute(1, 0, 2)
    return torch.bmm(parts, w.reshape(k_splits, k // k_splits, w.shape[1])).sum(0)


class UpstreamTestCase(RangeDispatchTestCase):
    def switches(self, **values):
        """Stock's test switches, or ours of the same meaning on a release that lacks them."""
        ours = {
            "force_custom_op_decomposition": "force_decomposition",
            "force_no_impl_grouping": "force_no_merge",
        }
        if all(hasattr(inductor_config.test_configs, name) for name in values):
            return inductor_config.patch({f"test_configs.{n}": v for n, v in values.items()})
        return config.patch({ours[name]: value for name, value in values.items()})

    def compile_and_get_codes(self, function, *args, **options):
        torch._dynamo.reset()
        result, codes = run_and_get_code(torch.compile(function, **options), *args)
        return result, codes


class FormTest(UpstreamTestCase):
    """What stands in the generated code."""

    @parametrize("device", DEVICES)
    def test_size_is_compared_in_dynamic_code_alone(self, device):
        op = define_op("upstream_form", scaled)
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(by_sum), CustomOpConfig(lambda x, scale: scale * x)],
            dispatch_on={"tensor_name": "x", "dim": 1, "range_upper_bound": 1024},
            split_points=[64, 128, 256, 512],
        )
        x = torch.randn(2, 96, 32, device=device)
        winners = {64: "by_sum", 96: "by_sum", 128: "<lambda>", 256: OP_LABEL, 512: "by_sum"}
        compared = {}
        for dynamic in (False, True):
            with force_winners({**winners, 1024: "<lambda>"}):
                result, codes = self.compile_and_get_codes(lambda x: op(x), x, dynamic=dynamic)
            self.assertEqual(result, x)
            compared[dynamic] = [
                found for code in codes for found in SHAPE_COMPARISON.findall(code)
            ]
        self.assertEqual(compared[False], [])
        self.assertEqual(len(compared[True]), 1)  # the others are elif

    @parametrize("device", DEVICES)
    def test_arguments_by_name_in_calls_of_the_op(self, device):
        """Two calls in one graph, each with an argument of its own."""
        op = define_op("upstream_kwargs", scaled)
        register_custom_op_autotuning(op, configs=[CustomOpConfig(by_sum)], name="upstream_kwargs")
        x = torch.randn(4, 4, device=device)
        with self.switches(force_custom_op_decomposition=False):
            result, codes = self.compile_and_get_codes(
                lambda x: (op(x, scale=2.0), op(x, scale=5.0), op(x)), x
            )
        self.assertEqual(result, (x * 2, x * 5, x))
        self.assertIn("upstream_kwargs.default(arg0_1, scale=2.0)", codes[-1])
        self.assertIn("upstream_kwargs.default(arg0_1, scale=5.0)", codes[-1])
        self.assertIn("upstream_kwargs.default(arg0_1)", codes[-1])

    @parametrize("device", DEVICES)
    def test_operands_stay_in_place_in_calls_of_the_op(self, device):
        """Arguments before an operand can't go by name."""

        def mixed(
            x: torch.Tensor, scale: float, w: torch.Tensor, n: int, shift: float = 0.0
        ) -> torch.Tensor:
            return x * scale + w * n + shift

        op = define_op("upstream_mixed", mixed)
        register_custom_op_autotuning(op, configs=[CustomOpConfig(lambda x, **_: x)])
        x, w = torch.randn(2, 4, device=device), torch.randn(2, 4, device=device)
        with self.switches(force_custom_op_decomposition=False):
            result, codes = self.compile_and_get_codes(
                lambda x, w: op(x, 2.0, w, 3, shift=1.0), x, w
            )
        self.assertEqual(result, x * 2 + w * 3 + 1)
        self.assertRegex(codes[-1], r"upstream_mixed.default\(\w+, 2.0, \w+, n=3, shift=1.0\)")

    @unittest.skipUnless(HAS_GPU, "needs a GPU: the setting is one of Triton kernels")
    @parametrize("dispatched", [False, True])
    def test_config_patches_reach_every_module(self, dispatched):
        def fill(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return x.new_zeros(x.shape[0], w.shape[1]) + x.sum(1, keepdim=True) + w.sum(0)

        op = define_op("upstream_patches", fill)
        where = {"dispatch_on": {"tensor_name": "x", "dim": 0}, "split_points": [128, 512]}
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(fill, config_patches={"coordinate_descent_tuning": True})],
            **(where if dispatched else {}),
        )
        x, w = torch.randn(1024, 64, device=GPU_TYPE), torch.randn(64, 64, device=GPU_TYPE)
        if dispatched:
            torch._dynamo.mark_dynamic(x, 0)
        compiled = torch.compile(lambda x, w: op(x, w))
        forced = {"force_custom_op_decomposition": True, "force_no_impl_grouping": dispatched}
        with self.switches(**forced):
            _, codes = run_and_get_code(compiled, x, w)
        # The op's own module has no kernel of ours in it.
        kernels = [code for code in codes if "@triton.jit" in code]
        self.assertGreaterEqual(len(kernels), 2 if dispatched else 1)
        for code in kernels:
            self.assertIn("'coordinate_descent_tuning': True", code)
        self.assertIn("@triton.jit", codes[-1])
        with torch._dynamo.config.patch(error_on_recompile=dispatched):
            for rows in (256, 257, 100, 600) if dispatched else (1024,):
                x = torch.randn(rows, 64, device=GPU_TYPE)
                self.assertEqual(compiled(x, w), fill(x, w), atol=1e-3, rtol=1e-3)

    @parametrize("device", DEVICES)
    def test_sizes_stay_symbolic(self, device):
        """A size that is used as a number is the number of every call, not of the first."""
        op = define_op("upstream_symbolic", lambda x: x.clone(), schema="(Tensor x) -> Tensor")
        register_custom_op_autotuning(op, configs=[CustomOpConfig(lambda x: x * x.shape[0])])
        compiled = torch.compile(lambda x: op(x), dynamic=True)
        with self.switches(force_custom_op_decomposition=True):
            for rows in (8, 16, 33):
                x = torch.randn(rows, 3, 5, device=device)
                self.assertEqual(compiled(x), x * rows)

    @parametrize("device", DEVICES)
    @parametrize("dispatched", [False, True])
    def test_results_are_storage_of_their_own(self, device, dispatched):
        """Also of an implementation in which the compiler finds that nothing is left to do."""
        op = define_op("upstream_storage", scaled)
        where = {"tensor_name": "x", "dim": 0, "range_upper_bound": 64}
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(lambda x, scale: scale * x)],
            **({"dispatch_on": where, "split_points": [4]} if dispatched else {}),
        )
        x = torch.randn(6, 3, device=device)
        with self.switches(force_custom_op_decomposition=True, force_no_impl_grouping=True):
            result, _ = self.compile_and_get_codes(lambda x: op(x), x, dynamic=True)
        self.assertEqual(result, x)
        self.assertNotEqual(result.data_ptr(), x.data_ptr())

    @parametrize("device", DEVICES)
    def test_parameters_win_over_the_callers_arguments(self, device):
        op = define_op("upstream_override", scaled)
        register_custom_op_autotuning(op, configs=[CustomOpConfig(by_sum, scale=7.0)])
        x = torch.randn(4, 4, device=device)
        with self.switches(force_custom_op_decomposition=True):
            result, codes = self.compile_and_get_codes(lambda x: op(x, scale=2.0), x)
        self.assertEqual(result, x * 7)
        self.assertIn("3.5", codes[-1])

    @parametrize("device", DEVICES)
    def test_the_op_is_not_compiled_where_an_implementation_has_to_win(self, device):
        """Every module that is generated then has an implementation's settings."""
        op = define_op("upstream_forced_modules", matmul)
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(split_k)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 64},
            split_points=[8],
        )
        x, w = torch.randn(16, 8, device=device), torch.randn(8, 4, device=device)
        torch._dynamo.mark_dynamic(x, 0)
        with self.switches(force_custom_op_decomposition=True, force_no_impl_grouping=True):
            result, codes = self.compile_and_get_codes(lambda x, w: op(x, w), x, w)
        self.assertEqual(result, x @ w)
        self.assertEqual(len(codes), 2)  # the implementation's benchmark module, and the graph
        self.assertNotIn("upstream_forced_modules.default(", "\n".join(codes))

    def test_forced_answers_are_not_kept_for_later(self):
        """What was measured without comparing answers must not decide where they are compared."""
        op = define_op("upstream_forced", scaled)
        register_custom_op_autotuning(op, configs=[CustomOpConfig(lambda x, scale: x + 100)])
        x = torch.randn(4)
        with config.patch(use_records=True):
            with self.switches(force_custom_op_decomposition=True):
                self.assertEqual(self.compile_and_get_codes(lambda x: op(x), x)[0], x + 100)
            self.assertEqual(self.compile_and_get_codes(lambda x: op(x), x)[0], x)


class TuningTest(UpstreamTestCase):
    """What is called while an op is tuned."""

    @parametrize("device", DEVICES)
    def test_real_sizes_in_benchmarks_symbolic_ones_in_code(self, device):
        seen = []

        def total(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return x.sum(1, keepdim=True) + w.sum(0)

        def spying(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            seen.append(x.shape[0])
            return total(x, w)

        op = define_op("upstream_seen", spying, total)
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(total)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 1024},
            split_points=[128, 512],
        )
        x, w = torch.randn(700, 16, device=device), torch.randn(16, 8, device=device)
        torch._dynamo.mark_dynamic(x, 0)
        with self.switches(force_no_impl_grouping=True):
            result, codes = self.compile_and_get_codes(lambda x, w: op(x, w), x, w)
        self.assertEqual(result, total(x, w), atol=1e-3, rtol=1e-3)
        self.assertEqual({type(n) for n in seen}, {int})
        self.assertGreaterEqual(set(seen), {128, 512, 1024})
        self.assertRegex(codes[-1], r"\bs\d+\b")

    @parametrize("device", DEVICES)
    def test_input_generators_see_every_probe(self, device):
        seen = {"x": [], "w": []}

        def generator(name):
            def generate(fake):
                seen[name].append((tuple(fake.shape), fake.dtype, fake.device.type))
                return torch.ones_like(fake)

            return generate

        op = define_op("upstream_generators", matmul)
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(split_k, k_splits=2)],
            input_gen_fns={"x": generator("x"), "w": generator("w")},
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 64},
            split_points=[8],
        )
        x, w = torch.randn(16, 8, device=device), torch.randn(8, 4, device=device)
        torch._dynamo.mark_dynamic(x, 0)
        result, _ = self.compile_and_get_codes(lambda x, w: op(x, w), x, w)
        self.assertEqual(result, x @ w)
        self.assertEqual({shape[0][0] for shape in seen["x"]}, {8, 64})
        self.assertEqual(set(seen["w"]), {((8, 4), torch.float32, device)})

    @parametrize("device", DEVICES)
    @parametrize("given", [("x",), ("x", "w")])
    def test_input_generators_of_some_arguments(self, device, given):
        called = []

        def generator(name):
            return lambda fake: (called.append(name), torch.randn_like(fake))[1]

        op = define_op("upstream_partial", matmul)
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(split_k, k_splits=2)],
            input_gen_fns={name: generator(name) for name in given},
        )
        x, w = torch.randn(16, 8, device=device), torch.randn(8, 4, device=device)
        with inductor_config.patch(max_autotune=True):
            result, _ = self.compile_and_get_codes(lambda x, w: op(x, w), x, w)
        self.assertEqual(result, x @ w)
        self.assertEqual(set(called), set(given))

    @parametrize("device", DEVICES)
    def test_config_generator_sees_the_call(self, device):
        """Configs made from the shapes of a call, with Inductor's own rule for split-K."""
        seen = []

        def fused(
            x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor, k_splits: int = 4
        ) -> torch.Tensor:
            return torch.relu(split_k(x, w, k_splits) + bias) * 2.0

        def generate(fakes):
            (m, k), n = fakes["x"].shape, fakes["w"].shape[1]
            splits = [s for s in get_k_splits(m, n, k) if k % s == 0] or [2, 8]
            seen.append((sorted(fakes), (m, k, n), splits))
            return [CustomOpConfig(k_splits=s) for s in splits]

        op = define_op("upstream_generated", fused)
        register_custom_op_autotuning(
            op,
            config_generator=generate,
            input_gen_fns={"x": lambda fake: torch.randn_like(fake) * 0.1},
        )
        for k in (256, 512):
            x, w = (torch.randn(s, device=device) for s in ((4, k), (k, 8)))
            bias = torch.randn(8, device=device)
            result, _ = self.compile_and_get_codes(
                lambda x, w, bias: op(x, w, bias), x, w, bias, dynamic=False
            )
            self.assertEqual(result, fused(x, w, bias), atol=1e-3, rtol=1e-3)
        self.assertEqual([s[0] for s in seen], [["bias", "w", "x"]] * 2)
        self.assertEqual([s[1] for s in seen], [(4, 256, 8), (4, 512, 8)])
        for plan, (_, _, splits) in zip(report.plans(), seen, strict=True):
            labels = [m.label for m in plan.results[0].measurements]
            expected = [f"default(k_splits={s})" for s in splits if s != 4]
            self.assertEqual(len(labels), len(set(labels)))
            self.assertGreaterEqual(len(labels), len(expected))

    @parametrize("device", DEVICES)
    def test_empty_config_generator_leaves_the_normal_lowering(self, device):
        mm = torch.ops.aten.mm.default
        x, w = torch.randn(64, 32, device=device), torch.randn(32, 16, device=device)
        with inductor_config.patch(max_autotune=True):
            _, before = self.compile_and_get_codes(torch.mm, x, w)
            register_custom_op_autotuning(mm, config_generator=lambda fakes: [])
            if hasattr(lowering, "user_lowerings"):
                self.assertIn(mm, lowering.user_lowerings)
            result, after = self.compile_and_get_codes(torch.mm, x, w)
        self.assertEqual(result, x @ w, atol=1e-3, rtol=1e-3)
        self.assertEqual("extern_kernels.mm" in before[-1], "extern_kernels.mm" in after[-1])

    @parametrize("device", DEVICES)
    @parametrize("force", [True, False, None])
    def test_aten_overload(self, device, force):
        register_custom_op_autotuning(
            torch.ops.aten.mm.default,
            configs=[CustomOpConfig(lambda a, b: split_k(a, b, 4))],
        )
        x, w = torch.randn(6, 64, device=device), torch.randn(64, 5, device=device)
        with self.switches(force_custom_op_decomposition=force):
            result, codes = self.compile_and_get_codes(lambda x, w: torch.mm(x, w) + 1, x, w)
        self.assertEqual(result, x @ w + 1, atol=1e-4, rtol=1e-4)
        chosen = [label for _, label in report.plans()[0].chosen]
        if force is not None:
            self.assertEqual("bmm" in codes[-1], force)
            self.assertEqual(chosen == [OP_LABEL], not force)

    @parametrize("device", DEVICES)
    def test_added_guards_are_counted_and_not_kept(self, device):
        """Compiled at a size that the guard holds for, called at one that it does not hold for."""

        def by_fours(x, w):
            if x.shape[0] % 4 == 0:
                parts = x.reshape(4, x.shape[0] // 4, x.shape[1])
                return torch.bmm(parts, w.expand(4, -1, -1)).reshape(x.shape[0], w.shape[1])
            return x @ w

        op = define_op("upstream_guards", matmul)
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(by_fours)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 64},
            split_points=[4, 16],
        )
        compiled = torch.compile(lambda x, w: op(x, w), dynamic=True)
        counters.clear()
        with self.switches(force_custom_op_decomposition=True):
            for rows in (8, 7):
                x, w = torch.randn(rows, 6, device=device), torch.randn(6, 3, device=device)
                self.assertEqual(compiled(x, w), x @ w)
        self.assertGreater(counters["inductor"]["custom_op_decomp_guard_skips"], 0)

    @parametrize("device", DEVICES)
    def test_shapes_read_by_an_implementation(self, device):
        def choosing(x, w):
            return split_k(x, w, 4) if x.shape[1] % 4 == 0 else x @ w

        op = define_op("upstream_reads", matmul)
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(matmul), CustomOpConfig(choosing)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 64},
            split_points=[4, 16],
        )
        compiled = torch.compile(lambda x, w: op(x, w), dynamic=True)
        x, w = torch.randn(8, 64, device=device), torch.randn(64, 32, device=device)
        torch._dynamo.mark_static(x, 1)
        torch._dynamo.mark_static(w)
        with force_winners({4: "choosing", 16: "matmul", 64: "choosing"}):
            self.assertEqual(compiled(x, w), x @ w, atol=1e-3, rtol=1e-3)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for rows in (3, 16, 50):
                x = torch.randn(rows, 64, device=device)
                torch._dynamo.mark_static(x, 1)
                self.assertEqual(compiled(x, w), x @ w, atol=1e-3, rtol=1e-3)

    @parametrize("device", DEVICES)
    def test_several_parameters(self, device):
        def variants(x: torch.Tensor, factor: torch.Tensor, mode: int = 1, chunk: int = 16):
            if mode == 1:
                return x * factor
            if mode == 2:
                return torch.cat([part * factor for part in x.split(chunk, 1)], 1)
            return torch.einsum("...i,i->...i", x, factor)

        variants.__annotations__["return"] = torch.Tensor
        op = define_op("upstream_variants", variants, lambda x, factor, mode=1, chunk=16: x * 1)
        configs = [{"mode": 1}, {"mode": 2, "chunk": 16}, {"mode": 2, "chunk": 32}, {"mode": 3}]
        register_custom_op_autotuning(op, configs=[CustomOpConfig(**c) for c in configs])
        x, factor = torch.randn(4, 64, 32, device=device), torch.randn(32, device=device)
        with inductor_config.patch(max_autotune=True, benchmark_kernel=True):
            result, _ = self.compile_and_get_codes(lambda x, f: op(x, f), x, factor)
        self.assertEqual(result, x * factor)
        self.assertEqual(len(report.plans()[0].results[0].measurements), len(configs) + 1)

    @parametrize("device", DEVICES)
    def test_normalization_at_several_shapes(self, device):
        def norm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
            return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps=eps)

        def by_hand(x, weight, eps=1e-6):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

        op = define_op("upstream_norm", norm, lambda x, weight, eps=1e-6: torch.empty_like(x))
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(by_hand)],
            input_gen_fns={"x": lambda fake: torch.randn_like(fake, device=device) * 0.02},
        )
        compiled = torch.compile(lambda x, w: op(x, w))
        with inductor_config.patch(max_autotune=True, benchmark_kernel=True):
            for shape in ((2, 16, 128), (8, 32, 256)):
                x, w = torch.randn(shape, device=device), torch.randn(shape[-1], device=device)
                self.assertEqual(compiled(x, w), norm(x, w), atol=1e-4, rtol=1e-4)

    @parametrize("device", DEVICES)
    def test_threshold(self, device):
        op = define_op("upstream_threshold", matmul)
        register_custom_op_autotuning(
            op, configs=[CustomOpConfig(split_k)], min_speedup_threshold=1e9
        )
        x, w = torch.randn(8, 16, device=device), torch.randn(16, 8, device=device)
        result, _ = self.compile_and_get_codes(lambda x, w: op(x, w), x, w)
        self.assertEqual(result, x @ w, atol=1e-4, rtol=1e-4)
        self.assertEqual(report.plans()[0].results[0].winner, OP_LABEL)

    @unittest.skipUnless(HAS_GPU and GPU_TYPE == "cuda", "needs CUDA")
    @parametrize("asked", [False, True])
    def test_inductors_cuda_graph_timing_is_used_when_asked_for(self, asked):
        if not hasattr(Benchmarker, "benchmark_gpu_with_cuda_graph"):
            self.skipTest("this release has no Benchmarker.benchmark_gpu_with_cuda_graph")
        calls = []
        original = Benchmarker.benchmark_gpu_with_cuda_graph

        def spying(self, fn):
            calls.append(fn)
            return original(self, fn)

        op = define_op("upstream_cudagraphs", matmul)
        register_custom_op_autotuning(
            op, configs=[CustomOpConfig(matmul)], benchmark_with_cudagraphs=asked
        )
        x, w = torch.randn(64, 256, device=GPU_TYPE), torch.randn(256, 128, device=GPU_TYPE)
        with mock.patch.object(Benchmarker, "benchmark_gpu_with_cuda_graph", spying):
            result, _ = self.compile_and_get_codes(lambda x, w: op(x, w), x, w)
        self.assertEqual(result, x @ w, atol=1e-2, rtol=1e-2)
        self.assertEqual(bool(calls), asked)

    @unittest.skipUnless(HAS_GPU and GPU_TYPE == "cuda", "needs CUDA")
    def test_tuning_gives_its_memory_back(self):
        op = define_op("upstream_memory", matmul)
        register_custom_op_autotuning(
            op, configs=[CustomOpConfig(split_k)], benchmark_with_cudagraphs=True
        )
        x, w = torch.randn(64, 256, device=GPU_TYPE), torch.randn(256, 128, device=GPU_TYPE)
        compiled = torch.compile(lambda x, w: op(x, w))

        def allocated():
            torch._dynamo.reset()
            compiled(x, w)
            torch.cuda.synchronize()
            torch._C._cuda_clearCublasWorkspaces()
            return torch.cuda.memory_allocated()

        first = allocated()
        self.assertEqual([allocated() for _ in range(3)], [first] * 3)

    @parametrize("device", DEVICES)
    def test_lowerings_cleared_behind_our_back(self, device):
        """PyTorch's tests empty the table between each other."""
        if not hasattr(lowering, "user_lowerings"):
            self.skipTest("this release has no such table")
        op = define_op("upstream_cleared", scaled)
        x = torch.randn(4, device=device)
        for _ in range(2):
            register_custom_op_autotuning(op, configs=[CustomOpConfig(by_sum)])
            lowering.user_lowerings.clear()
            report.clear()
            result, _ = self.compile_and_get_codes(lambda x: op(x, 2.0), x)
            self.assertEqual(result, x * 2)
            self.assertEqual(report.plans(), [])


instantiate_parametrized_tests(NamesTest)
instantiate_parametrized_tests(FormTest)
instantiate_parametrized_tests(TuningTest)

if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests(needs="filelock")
