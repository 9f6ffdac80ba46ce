"""What was tuned and chosen, kept for people and for tools.

``explain`` is what to ask::

    from torch._inductor.kernel.range_dispatch.report import explain

    print(explain(my_op))                              # a table
    Path("plan.html").write_text(explain(my_op).to_html())   # a page with a chart
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._inductor.kernel.range_dispatch import config, logs, progress, saved, source
from torch._inductor.kernel.range_dispatch.plan import FORMAT, OP, Plan, RECORDED


__all__ = ["clear", "explain", "NoPlan", "Plan", "plans", "record", "Report"]

log = logging.getLogger(__name__)

# Plans of one process, the latest last. Bounded: a server may compile for weeks.
_KEPT = 1024
_plans: collections.deque[Plan] = collections.deque(maxlen=_KEPT)


def record(plan: Plan) -> None:
    """Keep ``plan``, in place of the oldest one where too many are kept, and make it known.

    Called while the graph that the plan is for is lowered. Nothing that goes wrong here stops it.
    """
    try:
        plan = dataclasses.replace(progress.finish(plan), **source.of_current_node())
    except Exception:
        log.warning("%s: the plan lacks where it belongs", plan.op, exc_info=True)
    same_graph = (plan.compile_id, plan.backward)
    others = tuple(p for p in _plans if (p.compile_id, p.backward) == same_graph)
    _plans.append(plan)
    try:
        logs.publish(plan, others if plan.compile_id else ())
        if config.use_records:
            _save(plan)
    except Exception:
        log.warning("%s: the plan could not be made known", plan.op, exc_info=True)


def _save(plan: Plan) -> None:
    path = saved.save(plan)
    shown = progress.visible()
    if path is None or not (shown or logs.asked_for()):
        return
    page = path.with_suffix(".html")
    page.write_text(plan.to_html())
    verb = "dispatched to" if len(plan.chosen) > 1 else "runs"
    winners = ", ".join(dict.fromkeys(label for _, label in plan.chosen))
    how = "from records" if plan.origin == RECORDED else f"tuned in {plan.tuning_seconds:.1f} s"
    line = f"{plan.op}: {how}, {verb} {winners}. Report: {page}"
    logs.artifact_log.info("%s", line)
    if shown:
        progress.say(line)


def plans(op: str | None = None) -> tuple[Plan, ...]:
    """The plans of this process in the order in which they were made, of one op or of all.

    A graph that came out of a compile cache leaves none: nothing was tuned.
    """
    return tuple(plan for plan in _plans if op is None or plan.op == op)


def clear() -> None:
    """Forget all plans of this process; what is on disk stays."""
    _plans.clear()


class NoPlan(LookupError):
    """There is no plan for what was asked about; the message says why and what to do."""


@dataclass(frozen=True)
class Report:
    """Plans, to be read one by one, printed, or written in one.

    Attributes:
        plans: The plans, the oldest first.
    """

    plans: tuple[Plan, ...]

    def __len__(self) -> int:
        return len(self.plans)

    def __iter__(self) -> Iterator[Plan]:
        return iter(self.plans)

    def __getitem__(self, index: int) -> Plan:
        return self.plans[index]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.plans))

    def to_json(self) -> str:
        """All plans as one JSON object; ``from_json`` reads it back."""
        content = {"format": FORMAT, "plans": [plan.to_dict() for plan in self.plans]}
        return json.dumps(content, indent=1)

    @staticmethod
    def from_json(text: str) -> Report:
        """The report that ``to_json`` wrote.

        Raises:
            ValueError: ``text`` is not JSON, or not a report of this format.
        """
        content = json.loads(text)
        if not isinstance(content, dict) or not isinstance(content.get("plans"), list):
            raise ValueError(f"not a report of format {FORMAT}: it has no list of plans")
        return Report(tuple(map(Plan.from_dict, content["plans"])))

    def to_html(self) -> str:
        """One self-contained page with a section and a chart for each plan."""
        from torch._inductor.kernel.range_dispatch.page import page

        return page(self.plans)

    def plot(self) -> Any:
        """Draw the last plan with matplotlib; see ``Plan.plot``."""
        return self.plans[-1].plot()


def explain(what: Any) -> Report:
    """What was measured and chosen for an op, or for all ops in a compiled function.

    Args:
        what: What ``torch.library.custom_op`` returned, an overload, or the op's name such as
            ``"my_lib::my_op"``; or what ``torch.compile`` returned, after it was called.

    Returns:
        The plans of this process. For an op without any, those that an earlier process left in
        Inductor's cache directory, or what its records lead to.

    Raises:
        NoPlan: There is none; the message says why.
        TypeError: ``what`` is none of these.
    """
    name = _op_name(what)
    if name is not None:
        return _explain_op(name)
    return _explain_compiled(what)


def _op_name(what: Any) -> str | None:
    from torch._library.custom_ops import CustomOpDef

    if isinstance(what, str):
        what = what.removeprefix("torch.ops.")
        if "::" not in what and "." in what:
            what = what.replace(".", "::", 1)
        return str(what).removesuffix(".default")
    if isinstance(what, CustomOpDef):
        return str(what._opoverload.name())
    if isinstance(what, torch._ops.OpOverload):
        return str(what.name())
    if isinstance(what, torch._ops.OpOverloadPacket):
        return str(what._qualified_op_name)
    return None


def _explain_op(name: str) -> Report:
    for find in (plans, _saved, _recorded):
        if found := find(name):
            return Report(tuple(found))
    registered = _registrations()
    if name not in registered:
        names = ", ".join(sorted({*registered, *(p.op for p in _plans)})) or "none"
        raise NoPlan(
            f"{name} is not registered in this process, and no plan or record of it is in "
            f"{saved.cache_folder()}. Registered or tuned here: {names}"
        )
    raise NoPlan(
        f"{name} is registered and was not tuned yet: call a function that torch.compile "
        "compiled, and that calls the op, first"
    )


def _registrations() -> dict[str, Any]:
    custom_op = sys.modules.get("torch._inductor.kernel.custom_op")
    found = getattr(custom_op, "_registrations", {})
    return {op.name(): registration for op, registration in found.items()}


def _saved(name: str) -> list[Plan]:
    """Plans of earlier processes, made under this PyTorch for the op as it is registered."""
    registration = _registrations().get(name)
    found = [p for p in saved.plans(name) if p.release in ("", torch.__version__)]
    labels = {*_labels(registration), OP}
    if len(labels) == 1:
        return found
    return [p for p in found if {*p.labels, *(label for _, label in p.chosen)} <= labels]


def _labels(registration: Any) -> list[str]:
    """The registered candidates; none where a generator makes them."""
    if registration is None or registration.configs is None:
        return []
    from torch._inductor.kernel.range_dispatch.candidates import candidates_from_configs

    found = candidates_from_configs(registration.configs, registration.include_fallback)
    return [candidate.label for candidate in found]


def _recorded(name: str) -> list[Plan]:
    """What the records of this kind of device lead to, under the op's registration."""
    registration = _registrations().get(name)
    if registration is None:
        return []
    from torch._inductor.kernel.range_dispatch import signature

    labels = _labels(registration)
    return [
        saved.plan_of(entry, registration.ranges, registration.min_speedup_threshold, labels)
        for entry in saved.entries(signature.folders(registration), name)
        if entry.release == torch.__version__
    ]


def _explain_compiled(what: Any) -> Report:
    function = source.compiled_function(what)
    if function is None:
        raise TypeError(
            "explain() takes an op, an op's name, or what torch.compile returned, got "
            f"{what!r} of type {type(what).__name__}"
        )
    name = source.name_of(function)
    ids = source.compile_ids(function)
    if not ids:
        raise NoPlan(
            f"{name} was not compiled yet, or torch._dynamo.reset() dropped its code: call it first"
        )
    found = tuple(plan for plan in _plans if plan.compile_id in ids)
    if found:
        return Report(found)
    registered = ", ".join(sorted(_registrations())) or "none"
    raise NoPlan(
        f"{name} was compiled ({', '.join(sorted(ids))}), and nothing was tuned for it: it calls "
        "no op that is registered, or its code came out of a compile cache. explain() of the op "
        "itself reads what the process that tuned it left; TORCH_RANGE_DISPATCH_RETUNE=1 tunes "
        f"again. Registered: {registered}"
    )
