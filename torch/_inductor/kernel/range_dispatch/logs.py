"""Plans in PyTorch's own channels: TORCH_LOGS, the structured trace, counters, debug output.

``TORCH_LOGS="range_dispatch"`` shows plans and decisions, ``"+range_dispatch"`` the details too.
PyTorch parses that variable at the end of its own import and refuses names that it does not know,
except that it takes the name of any importable module for a logger. So the overlay comes with a
module of that name, and this one turns what was asked for into an artifact and levels. In a
PyTorch that contains the patch, ``torch._inductor.kernel.range_dispatch`` works likewise.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch._inductor.kernel.range_dispatch.page import page
from torch._inductor.kernel.range_dispatch.plan import Plan, RECORDED, times_of
from torch._inductor.virtualized import V
from torch._logging import _internal as torch_logs


NAME = "range_dispatch"
LOGGERS = ("torch._inductor.kernel.custom_op", "torch._inductor.kernel.range_dispatch")
DESCRIPTION = "Plans of range dispatch: what was measured for a custom op, and what runs where."


def _register() -> logging.Logger:
    """The artifact's logger, with TORCH_LOGS heeded although it was parsed before this import."""
    if not torch_logs.log_registry.is_artifact(NAME):
        torch_logs.register_artifact(NAME, DESCRIPTION, visible=True)
    state = torch_logs.log_state
    level = int(state.log_qname_to_level.get(NAME, logging.NOTSET))
    if level != logging.NOTSET:
        for name in LOGGERS:
            torch_logs.log_registry.register_child_log(name)
            state.enable_log(name, level)
            logging.getLogger(name).setLevel(level)
        if level <= logging.INFO:
            state.enable_artifact(NAME)
    return torch_logs.getArtifactLogger(__name__, NAME)


artifact_log = _register()


def asked_for() -> bool:
    """Whether somebody turned the artifact on by its name."""
    return bool(torch_logs.log_state.is_artifact_enabled(NAME))


def silenced() -> bool:
    """Whether somebody turned even warnings off."""
    return not logging.getLogger(LOGGERS[1]).isEnabledFor(logging.WARNING)


def publish(plan: Plan, others: tuple[Plan, ...] = ()) -> None:
    """Send ``plan`` out; ``others`` are the earlier plans of the same graph, for its debug page."""
    artifact_log.info("%s", plan)
    _count(plan)
    for name, encoding, payload in (
        ("range_dispatch_plan", "json", plan.to_json),
        ("range_dispatch_plan_table", "string", plan.__str__),
    ):
        torch._logging.trace_structured(
            "artifact",
            metadata_fn=lambda name=name, encoding=encoding: {"name": name, "encoding": encoding},
            payload_fn=payload,
        )
    folder = debug_folder()
    if folder is not None:
        with (folder / "range_dispatch.txt").open("a") as file:
            file.write(f"{plan}\n\n")
        (folder / "range_dispatch.html").write_text(page([*others, plan]))


def _count(plan: Plan) -> None:
    count = counters["inductor"]
    count["range_dispatch_plans"] += 1
    count["range_dispatch_dispatched" if len(plan.chosen) > 1 else "range_dispatch_inlined"] += 1
    count["range_dispatch_branches"] += len(plan.chosen)
    count["range_dispatch_not_used"] += len(plan.rejected)
    if plan.origin == RECORDED:
        count["range_dispatch_from_records"] += 1
    elif plan.origin is not None:
        count["range_dispatch_times"] += sum(len(times_of(result)) for result in plan.results)


def debug_folder() -> Path | None:
    """Where TORCH_COMPILE_DEBUG puts the files of the graph being lowered; None where it is off."""
    with contextlib.suppress(AttributeError):
        folder: Any = V.debug._path
        return Path(folder) if folder else None
    return None
