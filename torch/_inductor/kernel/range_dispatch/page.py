"""The report as one self-contained HTML page: no script, no font and no picture from elsewhere."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence

from torch._inductor.kernel.range_dispatch import chart
from torch._inductor.kernel.range_dispatch.choosing import Measurement, RangeResult
from torch._inductor.kernel.range_dispatch.plan import margin, Plan, RECORDED, times_of
from torch._inductor.kernel.range_dispatch.ranges import Range


_STYLE = f"""{chart.STYLE}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }}
main {{ max-width: 1000px; margin: 0 auto; padding: 28px 24px 60px; }}
h1 {{ font-size: 22px; margin: 0 0 20px; }}
h2 {{ font-size: 19px; margin: 0; overflow-wrap: anywhere; }}
section {{ margin-bottom: 56px; }}
.about {{ color: var(--soft); margin: 2px 0 18px; overflow-wrap: anywhere; }}
.facts {{ display: flex; flex-wrap: wrap; gap: 12px; margin: 0 0 18px; padding: 0; }}
.facts div {{ background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 10px 14px; }}
.facts dt {{ color: var(--soft); font-size: 13px; }}
.facts dd {{ margin: 0; font-size: 17px; font-weight: 600; }}
figure {{ margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 12px; overflow-x: auto; }}
figcaption {{ color: var(--soft); font-size: 13px; padding: 4px 6px 0; }}
svg + svg {{ margin-top: 14px; }}
svg {{ display: block; width: 100%; min-width: 640px; height: auto; }}
.scroll {{ overflow-x: auto; margin-top: 18px; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }}
th, td {{ text-align: right; padding: 6px 12px; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }}
th {{ font-weight: 600; vertical-align: bottom; }}
th.what {{ white-space: normal; max-width: 170px; }}
small {{ color: var(--soft); font-weight: 400; }}
th i {{ display: inline-block; width: 10px; height: 10px; border-radius: 5px;
  background: var(--own); margin-right: 6px; }}
td.runs {{ font-weight: 700; background: color-mix(in srgb, var(--own) 16%, transparent); }}
td.failed {{ color: var(--soft); }}
td:first-child, th:first-child {{ text-align: left; }}
ul {{ padding-left: 20px; margin: 14px 0 0; }}
li {{ margin: 4px 0; overflow-wrap: anywhere; }}
code {{ font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .92em; }}"""


def page(plans: Sequence[Plan]) -> str:
    """One page about ``plans``, with all of their data in it as JSON."""
    data = json.dumps([plan.to_dict() for plan in plans]).replace("<", "\\u003c")
    body = "\n".join(line for plan in plans for line in _section(plan))
    title = plans[0].op if len(plans) == 1 else f"{len(plans)} plans"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Range dispatch: {html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>Range dispatch</h1>
{body}
</main>
<script type="application/json" id="plans">{data}</script>
</body>
</html>
"""


def _section(plan: Plan) -> Iterator[str]:
    where = f" on <code>{_safe(f'{plan.dispatch_on} = {plan.size}')}</code>"
    yield f"<section><h2>{_safe(plan.op)}{where if plan.dispatch_on else ''}</h2>"
    about = [plan.device, f"PyTorch {plan.release}" if plan.release else ""]
    about += [f"called from {plan.called_from}" if plan.called_from else ""]
    about += ["in the backward graph" if plan.backward else ""]
    yield f'<p class="about">{_safe(", ".join(filter(None, about)))}</p>'
    yield '<dl class="facts">'
    for name, value in _facts(plan):
        yield f"<div><dt>{_safe(name)}</dt><dd>{_safe(value)}</dd></div>"
    yield "</dl>"
    if drawing := chart.svg(plan):
        yield f"<figure>{drawing}<figcaption>{_caption(plan)}</figcaption></figure>"
    yield from _table(plan)
    notes = list(_notes(plan))
    if notes:
        yield f"<ul>{''.join(f'<li>{note}</li>' for note in notes)}</ul>"
    yield "</section>"


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    if len(plan.chosen) > 1:
        yield "dispatched to", f"{len(plan.chosen)} branches"
        if (gain := plan.gain_over_single) is not None and plan.best_single != plan.op_label:
            yield f"predicted, against {plan.best_single} alone", f"{gain:.2f}x as fast"
    elif plan.chosen:
        yield "inlined", plan.chosen[0][1]
    only_op = {label for _, label in plan.chosen} == {plan.op_label}
    if (gain := plan.gain_over_op) is not None and not only_op:
        yield "predicted, against the op itself", f"{gain:.2f}x as fast"
    how = "from records" if plan.origin == RECORDED else "tuned"
    yield how, f"in {plan.tuning_seconds:.1f} s"


def _caption(plan: Plan) -> str:
    if plan.dispatch_on is None or len(plan.results) == 1:
        return "Time of one call at the size that was measured."
    return (
        "Each dot is a measured size; a dot with a border is the candidate that runs there. "
        "A vertical stroke is the spread of the rounds, a cross on top a size at which a candidate "
        "could not be used. Shaded: the ranges as they are dispatched, in the colour of what runs. "
        f"Below: the same times as multiples of the fastest one, up to {chart.SLOWEST:g}x. All "
        "axes are logarithmic."
    )


def _table(plan: Plan) -> Iterator[str]:
    styles = {series.label: series.style for series in chart.series_of(plan)}
    yield '<div class="scroll"><table><thead><tr><th>range</th><th>probe</th>'
    for label in plan.labels:
        yield f'<th class="what {styles[label]}"><i></i>{_breakable(label)}</th>'
    yield "<th>margin</th></tr></thead><tbody>"
    for result in plan.results:
        sizes = [str(size) for size, _ in result.probes] or [str(result.probe or "-")]
        yield f"<tr><td>{_spoken(result.range)}</td><td>{', '.join(sizes)}</td>"
        by_label = {m.label: m for m in result.measurements}
        for label in plan.labels:
            m = by_label.get(label)
            kind = "runs" if label == result.winner else "failed" if m and m.error else ""
            hint = f' title="{_safe(m.error)}"' if m is not None and m.error else ""
            cell = _cell(m, result)
            yield f'<td class="{kind} {styles[label]}"{hint}>{cell}</td>'
        ahead = margin(result)
        shown = "-" if ahead is None else f"{ahead:.2f}x"
        yield f"<td>{shown}</td></tr>"
    yield "</tbody></table></div>"


def _notes(plan: Plan) -> Iterator[str]:
    for range, label in plan.chosen:
        parts = [r.range for r in plan.results if range.contains(r.range.start)]
        merged = f", merged from {len(parts)} ranges" if len(parts) > 1 else ""
        yield f"{_spoken(range)} runs <b>{_safe(label)}</b>{merged}."
    for what, said in plan.neighbours():
        yield f"{what[0].upper()}{what[1:]}: {_safe(said)}."
    out = {label for label, _ in plan.rejected}
    for label, reason in plan.rejected:
        yield f"Not used: <b>{_safe(label)}</b>: {_safe(reason)}"
    for result in plan.results:
        for m in result.measurements:
            if m.error is not None and m.label not in out:
                where = _spoken(result.range)
                yield f"Not used in {where}: <b>{_safe(m.label)}</b>: {_safe(m.error)}"


def _cell(measurement: Measurement | None, result: RangeResult) -> str:
    if measurement is None:
        return "-"
    if measurement.error is not None:
        return "failed"
    if measurement.label not in times_of(result):
        return "-"
    spread = measurement.spread / measurement.milliseconds
    shown = f" <small>±{spread:.0%}</small>" if spread > 0 else ""
    return f"{chart.shown_time(measurement.milliseconds)}{shown}"


def _breakable(label: str) -> str:
    """``label``, which is one word to a browser, with places to break it."""
    return _safe(label).replace("_", "_<wbr>").replace("(", "<wbr>(").replace(",", ",<wbr>")


def _spoken(range: Range) -> str:
    return str(range).replace("inf", "∞")


def _safe(text: object) -> str:
    return html.escape(str(text))
