# Owner(s): ["module: inductor"]
"""Implementations that note that they ran, and a test of one dispatch that checks all of it.

What most tests ask is which implementation ran, with which arguments, and whether the answer is
the op's. None of that needs generated kernels, so the implementations here call the op itself and
an op that notes a label at run time: a graph of them compiles in a fraction of a second.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from range_dispatch_common import (
    config,
    final_code,
    force_winners,
    OP_LABEL,
    predicates,
    RangeDispatchTestCase,
    report,
)

import torch
from torch._dynamo.utils import counters
from torch._inductor.kernel.custom_op import (
    custom_op_autotuning,
    CustomOpConfig,
)
from torch.utils import _pytree as pytree


_ran: list[str] = []


@torch.library.custom_op("range_dispatch_test::ran", mutates_args=())
def _note(x: torch.Tensor, label: str) -> torch.Tensor:
    _ran.append(label)
    return x.clone()


_note.register_fake(lambda x, label: x.clone())


def noted(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    """``function`` under the name ``label``, noting at run time that it ran."""

    @functools.wraps(function)
    def implementation(*args: Any, **kwargs: Any) -> Any:
        leaves, spec = pytree.tree_flatten(function(*args, **kwargs))
        first = next(i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
        leaves[first] = _note(leaves[first], label)
        return pytree.tree_unflatten(leaves, spec)

    implementation.__name__ = label
    return implementation


def noted_op(op: Any, label: str) -> Callable[..., Any]:
    """The op itself as an implementation that takes any arguments, and notes that it ran."""

    def implementation(*args: Any, **kwargs: Any) -> Any:
        return op(*args, **kwargs)

    return noted(implementation, label)


def what_ran() -> list[str]:
    """The labels noted since the last call, in order."""
    labels = list(_ran)
    _ran.clear()
    return labels


# Three ranges, [0, 4], [5, 8] and [9, inf], measured at 4, 8 and 16, each with its own winner.
SPLIT_POINTS = [4, 8]
UPPER_BOUND = 16
WINNERS = {4: "short", 8: "long", 16: OP_LABEL}
# Inside of each range, its end and one above. The first call must not be special.
SIZES = (5, 4, 2, 3, 8, 7, 9, 33)


def winner_at(size: int) -> list[str]:
    """What notes that it ran at ``size``; the op itself does not."""
    return ["short"] if size <= 4 else ["long"] if size <= 8 else []


class RecordingTestCase(RangeDispatchTestCase):
    def setUp(self) -> None:
        super().setUp()
        what_ran()

    def check_dispatched(
        self,
        op: Any,
        function: Callable[..., Any],
        make_args: Callable[[int], Sequence[Any]],
        where: tuple[str, int],
        *,
        short: Callable[..., Any] | None = None,
        long: Callable[..., Any] | None = None,
        sizes: Sequence[int] = SIZES,
        measure: bool = True,
        input_gen_fns: Mapping[str, Any] | None = None,
        calls: int = 1,
    ) -> str:
        """``function`` calls ``op`` once; it must dispatch on ``where`` and agree with eager.

        Args:
            op: The op.
            function: What is compiled.
            make_args: From the size of the dispatched dimension to the arguments of ``function``.
            where: Name of the tensor and dimension.
            short: The implementation up to 4; the op itself, noted, by default.
            long: The one from 5 to 8; the same.
            sizes: The sizes to call at. The graph is compiled at the first one.
            measure: Also compile with real measuring, which must be able to run everything.
            input_gen_fns: As when registering.
            calls: How many times ``function`` calls the op.

        Returns:
            The generated code.
        """
        configs = [
            CustomOpConfig(short or noted_op(op, "short")),
            CustomOpConfig(long or noted_op(op, "long")),
        ]
        on = {"tensor_name": where[0], "dim": where[1], "range_upper_bound": UPPER_BOUND}
        registered = functools.partial(
            custom_op_autotuning,
            op,
            configs=configs,
            dispatch_on=on,
            split_points=SPLIT_POINTS,
            input_gen_fns=input_gen_fns,
        )
        with registered(), force_winners(WINNERS) as probes:
            counters.clear()
            compiled = torch.compile(function, dynamic=True, fullgraph=True)
            code = final_code(compiled, *make_args(sizes[0]))
            self.assertEqual(sorted(predicates(code)), SPLIT_POINTS)
            self.assertEqual(probes, [8, 4, 16] * calls)  # the middle one first
            for size in sizes:
                args = make_args(size)
                expected = function(*args)
                what_ran()
                actual = compiled(*args)
                labels = what_ran()
                self.assertEqual(actual, expected, exact_stride=True, msg=f"at size {size}")
                self.assertEqual(labels, winner_at(size) * calls, msg=f"at size {size}")
            self.assertEqual(counters["stats"]["unique_graphs"], 1)
        if measure:
            torch._dynamo.reset()
            report.clear()
            with registered(), quick_measuring():
                compiled = torch.compile(function, dynamic=True, fullgraph=True)
                for size in sizes[:2]:
                    self.check(compiled, function, *make_args(size))
                self.assert_all_measured(calls)
        return code

    def assert_all_measured(self, calls: int = 1) -> None:
        """Every candidate ran at every probe of every plan."""
        plans = report.plans()
        self.assertEqual(len(plans), calls)
        for plan in plans:
            self.assertEqual(plan.rejected, ())
            self.assertEqual([r.probe for r in plan.results], [4, 8, 16])
            for result in plan.results:
                self.assertEqual([m.error for m in result.measurements], [None] * 3)
                self.assertTrue(all(0 < m.milliseconds < 1e4 for m in result.measurements))

    def check_lowered_normally(
        self,
        op: Any,
        function: Callable[..., Any],
        args: Sequence[Any],
        where: tuple[str, int],
        reason: str,
    ) -> None:
        """Registered or not, ``function`` gives the same; one warning says why it is not tuned."""
        torch._logging.warning_once.cache_clear()
        what_ran()
        with (
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(noted_op(op, "short"))],
                dispatch_on={"tensor_name": where[0], "dim": where[1]},
                split_points=SPLIT_POINTS,
            ),
            force_winners(lambda size: "short"),
            self.assertLogs("torch._inductor.kernel.custom_op", "WARNING") as logs,
        ):
            compiled = torch.compile(function, dynamic=True, fullgraph=True)
            self.assertEqual(compiled(*copied(args)), function(*copied(args)), exact_stride=True)
        self.assertEqual(len(logs.output), 1, logs.output)
        self.assertIn(f"{op._opoverload if hasattr(op, '_opoverload') else op}", logs.output[0])
        self.assertRegex(logs.output[0], f"is lowered as if it were not registered: .*{reason}")
        self.assertEqual(what_ran(), [])
        self.assertEqual(report.plans(), ())


def copied(args: Sequence[Any]) -> list[Any]:
    return pytree.tree_map_only(torch.Tensor, lambda t: t.clone(), list(args))


def quick_measuring() -> Any:
    """Real measuring, as short as it gets: the timings are not what the tests are about."""
    return config.patch(tuning_rounds=1, tuning_budget_ms=0.01)


__all__ = [
    "CustomOpConfig",
    "noted",
    "noted_op",
    "quick_measuring",
    "RecordingTestCase",
    "SIZES",
    "what_ran",
    "winner_at",
    "WINNERS",
    "copied",
]
