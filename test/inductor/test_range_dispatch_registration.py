# Owner(s): ["module: inductor"]
"""What can be registered and what cannot, what a registration replaces, and how it is undone."""

import ast
import functools
import inspect
import logging
from unittest import mock

from range_dispatch_common import (
    custom_op,
    define_op,
    force_winners,
    OP_LABEL,
    RangeDispatchTestCase,
    report,
    stock_custom_op,
)

import torch
from torch._inductor import lowering
from torch._inductor.kernel.custom_op import (
    custom_op_autotuning,
    CustomOpConfig,
    DEFAULT_RANGE_UPPER_BOUND,
    register_custom_op_autotuning,
    unregister_custom_op_autotuning,
)
from torch._inductor.kernel.range_dispatch import compat, registration
from torch._inductor.kernel.range_dispatch.candidates import callable_name
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


STOCK = stock_custom_op()


def subtract(x, w, xs=(), factor=1.0, mode="plain", flag=False):
    return x - w


def two_kernels(x, w, xs=(), factor=1.0, mode="plain", flag=False, block=1):
    return torch.neg(w - x)


def by_position(a, b, c, d, e, f, block=1):
    return a - b


def too_few(x):
    return x


class Callable:
    def __call__(self, x, w, **options):
        return x - w


class Unreadable:
    """Not callable, not an int, and of a clear name in messages."""

    def __repr__(self):
        return "<unreadable>"


SUBTRACT = torch.library.custom_op(
    "range_dispatch_test::registered",
    subtract,
    mutates_args=(),
    schema="(Tensor x, Tensor? w, Tensor[] xs, float factor=1.0, str mode='plain', bool flag=False)"
    " -> Tensor",
)
SUBTRACT.register_fake(subtract)


def call(x, w):
    return SUBTRACT(x, w, [])


ON = {"tensor_name": "x", "dim": 0}
CONFIGS = [CustomOpConfig(subtract), CustomOpConfig(two_kernels)]

# Arguments, the type of the error, and what its message says: the argument, the value, the rule.
BAD = {
    "configs missing": ({"configs": None}, ValueError, "configs", "None", "config_generator"),
    "configs and generator": (
        {"config_generator": lambda tensors: CONFIGS},
        ValueError,
        "configs",
        "CustomOpConfig(subtract)",
        "mutually exclusive",
    ),
    "configs not a list": ({"configs": 3}, TypeError, "configs", "3 of type int", "list"),
    "configs one config": (
        {"configs": CONFIGS[0]},
        TypeError,
        "configs",
        "CustomOpConfig(subtract)",
        "a list of CustomOpConfig",
    ),
    "configs empty": ({"configs": []}, ValueError, "configs", "[]", "at least one"),
    "configs a function": (
        {"configs": [CONFIGS[0], subtract]},
        TypeError,
        "configs[1]",
        "function subtract",
        "a CustomOpConfig",
    ),
    "parameter nobody has": (
        {"configs": [CustomOpConfig(two_kernels, blok=2)]},
        ValueError,
        "configs[0]",
        "CustomOpConfig(two_kernels, blok=2)",
        "two_kernels has (block, factor, flag, mode, w, x, xs), not blok",
    ),
    "parameter the op lacks": (
        {"configs": [CustomOpConfig(block=2)]},
        ValueError,
        "configs[0]",
        "CustomOpConfig(default, block=2)",
        "the op has (factor, flag, mode, w, x, xs), not block",
    ),
    "parameter that gets lost": (
        {"configs": [CustomOpConfig(too_few, factor=2.0)]},
        ValueError,
        "configs[0]",
        "CustomOpConfig(too_few, factor=2.0)",
        "too_few takes, not factor",
    ),
    "patches of no setting": (
        {"configs": [CustomOpConfig(subtract, {"max_autotun": True})]},
        ValueError,
        "configs[0].config_patches",
        "{'max_autotun': True}",
        "torch._inductor.config by name, not max_autotun",
    ),
    "generator not callable": (
        {"configs": None, "config_generator": CONFIGS},
        TypeError,
        "config_generator",
        "of type list",
        "callable",
    ),
    "name not a string": ({"name": 3}, TypeError, "name", "3 of type int", "a str or None"),
    "generators not a dict": (
        {"input_gen_fns": [torch.randn_like]},
        TypeError,
        "input_gen_fns",
        "of type list",
        "a dict of functions by argument name",
    ),
    "generator of no argument": (
        {"input_gen_fns": {"y": torch.randn_like}},
        ValueError,
        "input_gen_fns",
        "'y'",
        "tensor arguments of the op (x, w, xs)",
    ),
    "generator of a scalar": (
        {"input_gen_fns": {"factor": torch.randn_like}},
        ValueError,
        "input_gen_fns",
        "'factor'",
        "tensor arguments of the op (x, w, xs)",
    ),
    "input generator not callable": (
        {"input_gen_fns": {"x": 1}},
        TypeError,
        "input_gen_fns['x']",
        "1 of type int",
        "callable",
    ),
    "dispatch without split points": (
        {"split_points": None},
        ValueError,
        "split_points",
        "None",
        "given with dispatch_on",
    ),
    "split points without dispatch": (
        {"dispatch_on": None},
        ValueError,
        "dispatch_on",
        "None",
        "given with split_points",
    ),
    "dispatch not a dict": (
        {"dispatch_on": ("x", 0)},
        ValueError,
        "dispatch_on",
        "('x', 0)",
        "a dict such as",
    ),
    "no tensor name": (
        {"dispatch_on": {"dim": 0}},
        ValueError,
        "dispatch_on",
        "{'dim': 0}",
        "tensor_name is missing",
    ),
    "no dim": (
        {"dispatch_on": {"tensor_name": "x"}},
        ValueError,
        "dispatch_on",
        "{'tensor_name': 'x'}",
        "dim is missing",
    ),
    "unknown key": (
        {"dispatch_on": {**ON, "upper_bound": 9}},
        ValueError,
        "dispatch_on",
        "'upper_bound': 9",
        "the keys dim, range_upper_bound, tensor_name only, not upper_bound",
    ),
    "key of no type": (
        {"dispatch_on": {**ON, 3: 9}},
        ValueError,
        "dispatch_on",
        "3: 9",
        "only, not 3",
    ),
    "tensor name of no type": (
        {"dispatch_on": {"tensor_name": 0, "dim": 0}},
        ValueError,
        "dispatch_on['tensor_name']",
        "0 of type int",
        "a str",
    ),
    "unknown tensor": (
        {"dispatch_on": {"tensor_name": "y", "dim": 0}},
        ValueError,
        "dispatch_on['tensor_name']",
        "'y'",
        "a tensor argument of the op (x, w); 'y' is not an argument",
    ),
    "name of a scalar": (
        {"dispatch_on": {"tensor_name": "factor", "dim": 0}},
        ValueError,
        "dispatch_on['tensor_name']",
        "'factor'",
        "a tensor argument of the op (x, w); 'factor' is a float",
    ),
    "name of a list": (
        {"dispatch_on": {"tensor_name": "xs", "dim": 0}},
        ValueError,
        "dispatch_on['tensor_name']",
        "'xs'",
        "'xs' is a List[Tensor]",
    ),
    **{
        f"dim {dim!r}": (
            {"dispatch_on": {"tensor_name": "x", "dim": dim}},
            ValueError,
            "dispatch_on['dim']",
            f"{dim!r} of type {type(dim).__name__}",
            "an int",
        )
        for dim in (True, 1.0, "0", None)
    },
    **{
        f"split points {points!r}": (
            {"split_points": points},
            ValueError,
            "split_points",
            repr(points),
            "a non-empty list of ints",
        )
        for points in ([], (), 512, "512", {512})
    },
    **{
        f"split point {point!r}": (
            {"split_points": [4, point]},
            ValueError,
            "split_points[1]",
            f"{point!r} of type {type(point).__name__}",
            "a positive int",
        )
        for point in (0, -8, 8.0, True, "8", None)
    },
    **{
        f"split points {points!r}": (
            {"split_points": points},
            ValueError,
            "split_points",
            repr(points),
            "strictly increasing",
        )
        for points in ([8, 4], [4, 4], (4, 16, 8))
    },
    **{
        f"upper bound {bound!r}": (
            {"dispatch_on": {**ON, "range_upper_bound": bound}},
            ValueError,
            "dispatch_on['range_upper_bound']",
            f"{bound!r} of type {type(bound).__name__}",
            "a positive int",
        )
        for bound in (0, -1, 64.0, True, None)
    },
    **{
        f"upper bound {bound} below": (
            {"dispatch_on": {**ON, "range_upper_bound": bound}, "split_points": [4, 16]},
            ValueError,
            "dispatch_on['range_upper_bound']",
            str(bound),
            "above the last split point, 16",
        )
        for bound in (15, 16)
    },
    **{
        f"threshold {value!r}": (
            {"min_speedup_threshold": value},
            ValueError,
            "min_speedup_threshold",
            f"{value!r} of type {type(value).__name__}",
            "positive and finite",
        )
        for value in (0, 0.0, -1.5, float("inf"), float("nan"))
    },
    **{
        f"threshold {value!r}": (
            {"min_speedup_threshold": value},
            TypeError,
            "min_speedup_threshold",
            f"{value!r} of type {type(value).__name__}",
            "a number",
        )
        for value in ("1.1", None, True)
    },
    **{
        f"{flag} {value!r}": (
            {flag: value},
            TypeError,
            flag,
            f"{value!r} of type {type(value).__name__}",
            "a bool",
        )
        for flag in ("benchmark_with_cudagraphs", "include_fallback")
        for value in (1, None, "yes")
    },
}

BAD_GENERATORS = ["generator of no argument", "generator of a scalar"]


GOOD = {
    "a tuple of configs": {"configs": tuple(CONFIGS)},
    "a generator": {"configs": None, "config_generator": lambda tensors: CONFIGS},
    "a tuple of split points": {"split_points": (1,)},
    "an optional tensor": {
        "dispatch_on": {"tensor_name": "w", "dim": -1, "range_upper_bound": 17},
    },
    "an int threshold": {"min_speedup_threshold": 2},
    "generators": {"input_gen_fns": {"x": torch.randn_like, "xs": torch.randn_like}},
    "the op with a parameter": {"configs": [CustomOpConfig(factor=2.0)]},
    "parameters of both": {"configs": [CustomOpConfig(two_kernels, block=2, factor=2.0)]},
    "a parameter by position": {"configs": [CustomOpConfig(by_position, block=2, factor=2.0)]},
    "any parameter": {"configs": [CustomOpConfig(Callable(), anything=2)]},
    "a partial": {"configs": [CustomOpConfig(functools.partial(two_kernels, block=1), block=2)]},
    "a builtin": {"configs": [CustomOpConfig(torch.sub)]},
    "patches": {"configs": [CustomOpConfig(subtract, {"cpp.simdlen": 1})]},
    "no dispatch": {"dispatch_on": None, "split_points": None},
}


NAMES = {
    "symbols": "my op/1",
    "digit": "2",
    "unicode": "ü",
    "long": "x" * 300,
    "private": "__x",
    "empty": "",
}


WORDS = {"-": "minus", ".": "point", "'": "quote", "[": "list", "{": "set", "(": "tuple"}


def case_name(case):
    words = "".join(f" {WORDS[c]} " if c in WORDS else c if c.isalnum() else " " for c in case)
    return "_".join(words.split())


class TestRangeDispatchRegistration(RangeDispatchTestCase):
    def register(self, op=None, **changes):
        given = {"configs": CONFIGS, "dispatch_on": ON, "split_points": [4, 16], **changes}
        return register_custom_op_autotuning(op or SUBTRACT, **given)

    def registered(self, op=None):
        return custom_op._registrations.get((op or SUBTRACT)._opoverload)

    @parametrize("case", list(BAD), name_fn=case_name)
    def test_bad_input(self, case):
        changes, error, argument, value, rule = BAD[case]
        if case in BAD_GENERATORS and compat.unknown_generator_is_passed_over():
            self.skipTest("a warning on this release")
        with self.assertRaises(error) as caught:
            self.register(**changes)
        message = str(caught.exception)
        self.assertIs(type(caught.exception), error)
        self.assertIn(
            "register_custom_op_autotuning(range_dispatch_test.registered.default)", message
        )
        self.assertIn(f": {argument} must be ", message)
        self.assertIn(value, message.partition(", got ")[2])
        self.assertIn(rule, message.partition(", got ")[0])
        self.assertIsNone(self.registered())

    @parametrize("case", BAD_GENERATORS, name_fn=case_name)
    def test_generators_of_no_tensor_where_stock_warns_of_them(self, case):
        changes, _, argument, value, rule = BAD[case]
        given = {"x": torch.zeros_like, **changes["input_gen_fns"]}
        with (
            mock.patch.object(compat, "unknown_generator_is_passed_over", lambda: True),
            self.assertLogs(registration.log, "WARNING") as logged,
        ):
            self.register(input_gen_fns=given)
        self.assertEqual(self.registered().input_gen_fns, {"x": torch.zeros_like})
        (message,) = [record.getMessage() for record in logged.records]
        for part in (f": {argument} must be keyed by {rule}", f"got {value}", "; it is not used"):
            self.assertIn(part, message)

    @parametrize(
        "function",
        [register_custom_op_autotuning, unregister_custom_op_autotuning],
        name_fn=callable_name,
    )
    def test_what_is_not_an_op(self, function):
        given = {"configs": CONFIGS} if function is register_custom_op_autotuning else {}
        for value in ("range_dispatch_test::registered", subtract, None, torch.ops.aten.mm):
            with self.assertRaises(TypeError) as caught:
                function(value, **given)
            message = str(caught.exception)
            self.assertIn("custom_op must be what torch.library.custom_op returns", message)
            self.assertIn(repr(value), message)
        self.assertIn("such as aten.mm.default", message)

    def test_bad_input_keeps_the_earlier_registration(self):
        self.register()
        before = self.registered()
        with self.assertRaises(ValueError):
            self.register(split_points=[8, 4])
        self.assertIs(self.registered(), before)

    @parametrize("case", list(GOOD), name_fn=case_name)
    def test_good_input(self, case):
        self.register(**GOOD[case])
        self.assertIsNotNone(self.registered())

    def test_defaults(self):
        register_custom_op_autotuning(SUBTRACT, CONFIGS)
        registration = self.registered()
        self.assertEqual(registration.name, "range_dispatch_test::registered_autotuned")
        self.assertEqual(registration.configs, tuple(CONFIGS))
        self.assertIsNone(registration.dispatch_on)
        self.assertEqual(registration.ranges, ())
        self.assertEqual(registration.min_speedup_threshold, 1.0)
        self.assertIs(registration.benchmark_with_cudagraphs, False)
        self.assertIs(registration.include_fallback, True)

    def test_default_upper_bound(self):
        self.assertEqual(DEFAULT_RANGE_UPPER_BOUND, 65536)
        for points, bound in (([4], 65536), ([65535], 131070), ([4, 100_000], 200_000)):
            self.register(split_points=points)
            self.assertEqual(self.registered().dispatch_on.range_upper_bound, bound)

    def test_signature(self):
        """Stock 2.15's, which older releases lack parts of, and then what is ours."""
        parameters = inspect.signature(register_custom_op_autotuning).parameters
        shown = {name: p.default for name, p in parameters.items()}
        self.assertEqual(
            shown,
            {
                "custom_op": inspect.Parameter.empty,
                "configs": None,
                "config_generator": None,
                "name": None,
                "input_gen_fns": None,
                "dispatch_on": None,
                "split_points": None,
                "min_speedup_threshold": 1.0,
                "benchmark_with_cudagraphs": False,
                "include_fallback": True,
                "check": True,
                "probe_sizes": None,
                "records": None,
            },
        )
        self.assertEqual(list(shown)[-3:], ["check", "probe_sizes", "records"])

    @parametrize(
        "path", ["register_custom_op_autotuning", "autotune_custom_op", "CustomOpConfig.__init__"]
    )
    def test_superset_of_stock(self, path):
        """Calls that the running release takes mean the same here: names, order, defaults."""
        stock = stock_parameters(path)
        parameters = inspect.signature(
            functools.reduce(getattr, path.split("."), custom_op)
        ).parameters
        dropped = {name for name, _, _ in stock} - parameters.keys()
        self.assertLessEqual(dropped, {"return_choice"})  # 2.11's; later releases always return it
        common = [given for given in stock if given[0] not in dropped]
        self.assertGreater(len(common), 2)
        known = [name for name, _, _ in common]
        ours = [(name, p.default, p.kind) for name, p in parameters.items() if name in known]
        self.assertEqual(ours, common)
        required = [n for n, p in parameters.items() if n not in known and p.default is p_empty]
        self.assertEqual(required, [])

    def test_exports_of_stock(self):
        exported = next(
            ast.literal_eval(node.value)
            for node in ast.parse(STOCK.read_text()).body
            if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
        )
        self.assertLessEqual(set(exported), set(custom_op.__all__))
        for name in custom_op.__all__:
            self.assertTrue(hasattr(custom_op, name), name)

    def test_register_again_replaces(self):
        self.register(configs=[CustomOpConfig(subtract)])
        other = define_op("registered_once", copied)
        with self.assertNoLogs(custom_op.__name__, logging.DEBUG):
            register_custom_op_autotuning(other, [CustomOpConfig(copied)])
        with self.assertLogs(custom_op.__name__, logging.DEBUG) as logged:
            self.register(configs=[CustomOpConfig(two_kernels)])
        (record,) = logged.records
        self.assertEqual(record.levelno, logging.DEBUG)
        self.assertIn(
            "range_dispatch_test.registered.default: registered again", record.getMessage()
        )
        (config,) = self.registered().configs
        self.assertIs(config.decomposition, two_kernels)

        x, w = torch.randn(8, 3), torch.randn(8, 3)
        with force_winners({8: "two_kernels"}):
            self.check(torch.compile(call, dynamic=False), subtract, x, w)
        (plan,) = report.plans()
        self.assertEqual([label for _, label in plan.chosen], ["two_kernels"])

    def test_unregister(self):
        op = SUBTRACT
        overload = op._opoverload
        tables = [lowering.lowerings, getattr(lowering, "user_lowerings", {})]
        unregister_custom_op_autotuning(op)  # nothing to undo
        # What 2.11 puts there before a registration stays: the lowering of an unregistered op.
        self.register()
        unregister_custom_op_autotuning(op)
        before = [table.get(overload) for table in tables]
        self.register()
        self.assertNotEqual([table.get(overload) for table in tables], before)
        unregister_custom_op_autotuning(overload)
        self.assertIsNone(self.registered())
        self.assertEqual([table.get(overload) for table in tables], before)
        unregister_custom_op_autotuning(op)

        self.check(torch.compile(call), subtract, torch.randn(8, 3), torch.randn(8, 3))
        self.assertEqual(report.plans(), ())

    def test_context_manager(self):
        with custom_op_autotuning(SUBTRACT, CONFIGS, name="inner"):
            self.assertEqual(self.registered().name, "inner")
        self.assertIsNone(self.registered())

    def test_context_manager_brings_back(self):
        self.register(name="outer")
        outer = self.registered()
        with (
            self.assertRaisesRegex(KeyError, "in the body"),
            custom_op_autotuning(SUBTRACT, CONFIGS, name="inner"),
        ):
            self.assertEqual(self.registered().name, "inner")
            with custom_op_autotuning(SUBTRACT._opoverload, CONFIGS, name="innermost"):
                self.assertEqual(self.registered().name, "innermost")
            self.assertEqual(self.registered().name, "inner")
            raise KeyError("in the body")
        self.assertIs(self.registered(), outer)
        with self.assertRaises(ValueError), custom_op_autotuning(SUBTRACT, []):
            self.fail("a bad registration is entered")
        self.assertIs(self.registered(), outer)

        with force_winners(lambda size: "two_kernels" if size == 4 else "subtract"):
            self.check(
                torch.compile(call, dynamic=True), subtract, torch.randn(8, 3), torch.ones(8, 3)
            )
        (plan,) = report.plans()
        self.assertEqual([label for _, label in plan.chosen], ["two_kernels", "subtract"])

    def compile_error(self, *args):
        """The message of what compiling a call of the op raises."""
        with self.assertRaises(Exception) as caught:
            torch.compile(lambda *args: SUBTRACT(*args))(*args)
        return str(caught.exception)

    @parametrize("dim", [2, -3, 7])
    def test_dim_out_of_range(self, dim):
        """The rank is known at the first lowering."""
        self.register(dispatch_on={"tensor_name": "x", "dim": dim})
        message = self.compile_error(torch.randn(8, 3), torch.randn(8, 3), [])
        self.assertIn("ValueError", message)
        self.assertIn(
            "register_custom_op_autotuning(range_dispatch_test.registered.default): "
            "dispatch_on['dim'] must be in [-2, 1]",
            message,
        )
        self.assertIn(f"'x' has 2 dimensions in this call, got {dim}", message)

    @parametrize("dim", [-3, -2, -1, 0, 1, 2])
    def test_every_dim(self, dim):
        self.register(dispatch_on={"tensor_name": "x", "dim": dim, "range_upper_bound": 99})
        shape = [5, 6, 7]
        x, w = torch.randn(shape), torch.randn(shape)
        torch._dynamo.mark_dynamic(x, dim % 3)
        torch._dynamo.mark_dynamic(w, dim % 3)
        with force_winners({4: OP_LABEL, 16: "two_kernels", 99: "subtract"}) as probes:
            self.check(torch.compile(call), subtract, x, w)
        self.assertEqual(probes, [16, 4, 99])
        (plan,) = report.plans()
        self.assertEqual(plan.dispatch_on, f"x.shape[{dim % 3}]")

    @parametrize(
        "returned, said",
        [
            (
                "configs",
                "config_generator must be a function that returns a list of CustomOpConfig",
            ),
            (subtract, "config_generator must be a function that returns a list of CustomOpConfig"),
            ([subtract], "config_generator(...)[0] must be a CustomOpConfig"),
            ([CustomOpConfig(subtract), 3], "config_generator(...)[1] must be a CustomOpConfig"),
            ([CustomOpConfig(too_few, block=1)], "too_few has (factor, flag, mode, w, x, xs), not"),
            ([CustomOpConfig(subtract, {"no": 1})], "config_generator(...)[0].config_patches must"),
        ],
        name_fn=lambda returned, said: case_name(f"{type(returned).__name__} {said[-40:]}"),
    )
    def test_bad_generated_configs(self, returned, said):
        self.register(configs=None, config_generator=lambda tensors: returned)
        message = self.compile_error(torch.randn(8, 3), torch.randn(8, 3), [])
        self.assertIn(
            "register_custom_op_autotuning(range_dispatch_test.registered.default)", message
        )
        self.assertIn(said, message)

    def test_generator_that_raises(self):
        def generator(tensors):
            raise LookupError("no configs for this shape")

        self.register(configs=None, config_generator=generator)
        message = self.compile_error(torch.randn(8, 3), torch.randn(8, 3), [])
        self.assertIn("LookupError: no configs for this shape", message)

    @parametrize("returned", [None, [], ()], name_fn=lambda returned: type(returned).__name__)
    def test_generator_without_configs(self, returned):
        seen = {}

        def generator(tensors):
            seen.update(tensors)
            return returned

        self.register(configs=None, config_generator=generator)
        with self.assertNoLogs(custom_op.__name__, logging.WARNING):
            self.check(
                torch.compile(call, dynamic=True), subtract, torch.randn(8, 3), torch.ones(8, 3)
            )
        self.assertEqual(report.plans(), ())
        self.assertEqual({name: tuple(t.shape[1:]) for name, t in seen.items()}.keys(), {"x", "w"})
        self.assertEqual(seen["x"].dtype, torch.float32)

    @parametrize("kind", list(NAMES))
    def test_any_name(self, kind):
        name = NAMES[kind]
        self.register(name=name, dispatch_on={**ON, "range_upper_bound": 99})
        with force_winners({4: "two_kernels", 16: OP_LABEL, 99: OP_LABEL}):
            compiled = torch.compile(call, dynamic=True)
            self.check(compiled, subtract, torch.randn(8, 3), torch.randn(8, 3))
            self.check(compiled, subtract, torch.randn(3, 3), torch.randn(3, 3))


class TestCustomOpConfig(RangeDispatchTestCase):
    def test_bad_decomposition(self):
        for value in (3, "subtract", Unreadable(), [subtract]):
            with self.assertRaises(TypeError) as caught:
                CustomOpConfig(value)
            self.assertIn(
                "CustomOpConfig: decomposition must be callable or None", str(caught.exception)
            )
            self.assertIn(f"{value!r} of type {type(value).__name__}", str(caught.exception))

    def test_bad_patches(self):
        for value in (True, "max_autotune", ["max_autotune"]):
            with self.assertRaises(TypeError) as caught:
                CustomOpConfig(subtract, config_patches=value)
            self.assertIn("CustomOpConfig: config_patches must be a dict", str(caught.exception))
            self.assertIn(f"{value!r} of type {type(value).__name__}", str(caught.exception))

    def test_attributes(self):
        patches = {"max_autotune": True}
        config = CustomOpConfig(subtract, patches, block=2)
        self.assertIs(config.decomposition, subtract)
        self.assertEqual(config.params, {"block": 2})
        self.assertEqual(config.config_patches, patches)
        patches.clear()
        self.assertEqual(config.config_patches, {"max_autotune": True})
        self.assertEqual(CustomOpConfig().config_patches, {})
        self.assertEqual(CustomOpConfig(config_patches=None).params, {})

    def test_get_decomposition(self):
        self.assertIs(CustomOpConfig(subtract).get_decomposition(), subtract)
        self.assertIs(CustomOpConfig(subtract).get_decomposition(two_kernels), subtract)
        self.assertIs(CustomOpConfig(block=1).get_decomposition(two_kernels), two_kernels)
        for default in (None, 3):
            with self.assertRaisesRegex(TypeError, "no decomposition was given.*default_impl is"):
                CustomOpConfig(block=1).get_decomposition(default)

    def test_falsy_callable(self):
        """What decides is whether one was given, not whether it is true."""

        class Empty(Callable):
            def __len__(self):
                return 0

        implementation = Empty()
        self.assertIs(CustomOpConfig(implementation).get_decomposition(subtract), implementation)

    @parametrize(
        "config, shown",
        [
            (CustomOpConfig(), "CustomOpConfig(default)"),
            (CustomOpConfig(block=2, mode="a"), "CustomOpConfig(default, block=2, mode='a')"),
            (CustomOpConfig(subtract), "CustomOpConfig(subtract)"),
            (CustomOpConfig(subtract, block=2), "CustomOpConfig(subtract, block=2)"),
            (CustomOpConfig(lambda x: x), "CustomOpConfig(<lambda>)"),
            (
                CustomOpConfig(functools.partial(two_kernels, block=2), factor=1.0),
                "CustomOpConfig(two_kernels(block=2), factor=1.0)",
            ),
            (CustomOpConfig(Callable()), "CustomOpConfig(Callable)"),
            (CustomOpConfig(Callable().__call__), "CustomOpConfig(__call__)"),
            (CustomOpConfig(torch.sub), "CustomOpConfig(sub)"),
            (CustomOpConfig(torch.ops.aten.sub.Tensor), "CustomOpConfig(sub.Tensor)"),
        ],
        name_fn=lambda config, shown: case_name(shown),
    )
    def test_repr(self, config, shown):
        self.assertEqual(repr(config), shown)


def copied(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


p_empty = inspect.Parameter.empty


def stock_parameters(path):
    """Name, default and kind of each parameter in the installed release's own file."""
    scope = ast.parse(STOCK.read_text())
    for name in path.split("."):
        scope = next(node for node in scope.body if getattr(node, "name", None) == name)
    given = scope.args
    defaults = [ast.literal_eval(node) for node in given.defaults]
    names = [a.arg for a in given.args]
    defaults = [p_empty] * (len(names) - len(defaults)) + defaults
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [(name, default, kind) for name, default in zip(names, defaults, strict=True)]
    assert not given.kwonlyargs and not given.vararg, "not needed for stock so far"
    if given.kwarg:
        parameters.append((given.kwarg.arg, p_empty, inspect.Parameter.VAR_KEYWORD))
    return parameters


instantiate_parametrized_tests(TestRangeDispatchRegistration)
instantiate_parametrized_tests(TestCustomOpConfig)


if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    run_tests()
