"""The chart of a plan: time against size on log axes, a line a candidate, the ranges shaded.

As SVG text without any library, for the page, and with matplotlib, for notebooks. What is drawn
where is computed once for both.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch._inductor.kernel.range_dispatch.choosing import Measurement
from torch._inductor.kernel.range_dispatch.plan import Plan
from torch._inductor.kernel.range_dispatch.ranges import Range


# Colours of candidates: classes s0.. of the page's style sheet; the op itself has its own.
COLOURS = 8
# Style sheet of the colours and of the parts of a chart.
STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f9; --ink: #1b1f24; --soft: #5b6470; --rule: #d8dde3;
  --s0: #2f6bd8; --s1: #d2691e; --s2: #1d8f63; --s3: #a2459f;
  --s4: #0e8fa8; --s5: #c5344f; --s6: #86700a; --s7: #5f4bb6; --op: #6b7380;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1d2126; --ink: #e8eaed; --soft: #a2abb6; --rule: #363c44;
    --s0: #7fabff; --s1: #ffa366; --s2: #5ed0a0; --s3: #dd8fdb;
    --s4: #57cfe3; --s5: #ff8599; --s6: #d8bf4f; --s7: #b3a4ff; --op: #9aa3ae;
  }
}
svg text { font-size: 12px; fill: var(--soft); }
svg text.name { fill: var(--ink); font-weight: 600; }
svg text.axis { font-size: 12.5px; }
svg .middle { text-anchor: middle; }
svg .end { text-anchor: end; }
.grid { stroke: var(--rule); stroke-width: 1; }
.rule { stroke: var(--soft); stroke-width: 1; }
.split { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3; }
.s0 { --own: var(--s0); } .s1 { --own: var(--s1); } .s2 { --own: var(--s2); }
.s3 { --own: var(--s3); } .s4 { --own: var(--s4); } .s5 { --own: var(--s5); }
.s6 { --own: var(--s6); } .s7 { --own: var(--s7); } .op { --own: var(--op); }
.band rect { fill: var(--own); opacity: .13; }
.band rect.cap { opacity: 1; }
.bar rect { fill: var(--own); }
.line { fill: none; stroke: var(--own); }
.line polyline { stroke-width: 2; stroke-linejoin: round; }
.line.op polyline { stroke-dasharray: 6 4; }
.line .leader { stroke-width: 1; opacity: .55; stroke-dasharray: 1 3; }
.line circle { fill: var(--own); stroke: var(--card); stroke-width: 1; }
.line circle.runs { stroke: var(--ink); stroke-width: 2; }
.line .spread { stroke-width: 1.5; opacity: .6; }
.line .failed { stroke-width: 2; }
svg text.name[class*=" s"], svg text.name.op { fill: var(--own); }
"""
# Widths of characters in the page's 12-pixel font, on the safe side.
_CHARACTER = 6.9


@dataclass(frozen=True)
class Dot:
    """One measurement: a candidate's milliseconds at a size, and whether it runs there."""

    size: int
    milliseconds: float
    spread: float
    runs: bool


@dataclass(frozen=True)
class Series:
    """A candidate's measurements, and the sizes at which it could not be used."""

    label: str
    style: str
    dots: tuple[Dot, ...]
    failures: tuple[tuple[int, str], ...]

    def relative_to(self, fastest: dict[int, float]) -> Series:
        """The same with times as multiples of the fastest one at each size."""
        dots = (
            replace(
                dot,
                milliseconds=dot.milliseconds / fastest[dot.size],
                spread=dot.spread / fastest[dot.size],
            )
            for dot in self.dots
        )
        return replace(self, dots=tuple(dots))


def series_of(plan: Plan) -> tuple[Series, ...]:
    """What was measured, a series for each candidate, in registration order."""
    rows = sorted(_rows(plan), key=lambda row: row[0])
    found = []
    ordinary = [label for label in plan.labels if label != plan.op_label]
    for label in plan.labels:
        dots, failures = [], []
        for size, row, winner in rows:
            m = next((m for m in row if m.label == label), None)
            if m is None:
                continue
            if m.error is not None or not math.isfinite(m.milliseconds):
                failures.append((size, m.error or "it has no time"))
            elif m.milliseconds > 0:
                dots.append(Dot(size, m.milliseconds, m.spread, label == winner))
        style = "op" if label == plan.op_label else f"s{ordinary.index(label) % COLOURS}"
        found.append(Series(label, style, tuple(dots), tuple(failures)))
    return tuple(found)


def _rows(plan: Plan) -> Iterator[tuple[int, Sequence[Measurement], str]]:
    for result in plan.results:
        if result.probes:
            yield from ((size, row, result.winner) for size, row in result.probes)
        elif result.probe is not None:
            yield result.probe, result.measurements, result.winner


@dataclass(frozen=True)
class Scale:
    """From values between ``low`` and ``high``, on a log axis, to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        clamped = min(max(value, self.low), self.high)
        part = math.log(clamped / self.low) / math.log(self.high / self.low)
        return self.start + part * (self.end - self.start)


def span_of_sizes(plan: Plan, sizes: Sequence[int]) -> tuple[float, float]:
    """Where the size axis begins and ends. A log axis has no 0; there is room on both sides."""
    first, last = max(1, min(sizes)), max(1, *sizes)
    starts = [r.start for r, _ in plan.chosen if r.start > 0]
    low = min([first / 2, *starts]) if plan.chosen and plan.chosen[0][0].start > 0 else first / 2
    ends = [r.end for r, _ in plan.chosen if r.bounded]
    return max(low, 0.5), max([last * 2.0, *(end * 1.2 for end in ends)])


def ticks_of_times(low: float, high: float) -> list[float]:
    """Round values between two times, about four to eight of them.

    >>> ticks_of_times(0.3, 9.0)
    [0.5, 1.0, 2.0, 5.0]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        ticks = [round(s * 10.0**d, 12) for d in decades for s in steps]
        inside = [t for t in ticks if low <= t <= high]
        if len(inside) <= 8:
            break
    return inside


def shown_time(milliseconds: float) -> str:
    """A time in the unit that suits it.

    >>> [shown_time(t) for t in (0.0005, 0.0123, 4.0, 1500.0)]
    ['500 ns', '12.3 us', '4 ms', '1.5 s']
    """
    for unit, factor in (("ns", 1e6), ("us", 1e3), ("ms", 1.0), ("s", 1e-3)):
        value = milliseconds * factor
        if value < 999.5 or unit == "s":
            return f"{value:.3g} {unit}"
    return ""


# ---------------------------------------------------------------------------------------------
# SVG.

WIDTH, HEIGHT = 900.0, 430.0
_TOP, _BOTTOM, _LEFT = 48.0, 372.0, 74.0


# Of the times as multiples of the fastest one: what is slower than this is drawn at the top.
SLOWEST = 3.0


def svg(plan: Plan) -> str:
    """The chart as an SVG element for the page; empty where nothing was measured.

    Below it, where there are several sizes, the same times as multiples of the fastest one at
    each size: candidates that are close together are told apart there.
    """
    drawn = [series for series in series_of(plan) if series.dots]
    sizes = sorted({dot.size for series in drawn for dot in series.dots})
    if not sizes:
        return ""
    if len(sizes) == 1:
        return _bars(plan, drawn)
    gutter = 30 + _CHARACTER * max(len(_short(series.label)) for series in drawn)
    x = Scale(*span_of_sizes(plan, sizes), _LEFT, WIDTH - gutter)
    against = plan.dispatch_on or "the size"
    times = [dot.milliseconds for series in drawn for dot in series.dots]
    y = Scale(min(times) / 1.25, max(times) * 1.25, _BOTTOM, _TOP)
    parts = [*_shading(plan, drawn, x), *_time_axis(y, x), *_size_axis(plan, sizes, x)]
    parts += [*_data(drawn, x, y)]
    first = _element(f"Time of one call of {plan.op} against {against}", HEIGHT, parts)
    return f"{first}\n{_ratios(plan, drawn, sizes, x)}"


def picture(plan: Plan) -> str:
    """The chart as an SVG file that stands alone, as for a README; without the multiples."""
    drawing, _, _ = svg(plan).partition("</svg>")
    head, bracket, rest = drawing.partition(">")
    font = "text { font-family: system-ui, 'DejaVu Sans', sans-serif; }"
    frame = f'<rect width="{WIDTH:.0f}" height="{HEIGHT:.0f}" rx="8" fill="var(--card)"/>'
    style = f"<style>{STYLE}{font}</style>{frame}"
    return f'{head} xmlns="http://www.w3.org/2000/svg"{bracket}{style}{rest}</svg>\n'


def _ratios(plan: Plan, drawn: Sequence[Series], sizes: Sequence[int], x: Scale) -> str:
    fastest = {
        size: min(d.milliseconds for series in drawn for d in series.dots if d.size == size)
        for size in sizes
    }
    relative = [series.relative_to(fastest) for series in drawn]
    slowest = max(dot.milliseconds for series in relative for dot in series.dots)
    y = Scale(0.97, min(max(slowest * 1.05, 1.1), SLOWEST), _BOTTOM, _TOP)
    parts = [*_shading(plan, drawn, x), *_ratio_axis(y, x), *_size_axis(plan, sizes, x)]
    parts += [*_data(relative, x, y, "{:.3g}x".format)]
    title = f"Times of {plan.op} as multiples of the fastest one at each size"
    return _element(title, HEIGHT, parts)


def _data(
    drawn: Sequence[Series], x: Scale, y: Scale, shown: Callable[[float], str] | None = None
) -> Iterator[str]:
    for series in drawn:
        yield from _line(series, x, y)
    for runs in (False, True):  # what runs is drawn over what does not
        for series in drawn:
            dots = tuple(dot for dot in series.dots if dot.runs is runs)
            yield from _dots(replace(series, dots=dots), x, y, shown or shown_time)
    yield from _line_labels(drawn, x, y)


def _element(title: str, height: float, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" '
            f'aria-label="{html.escape(title)}">',
            *parts,
            "</svg>",
        ]
    )


def _shading(plan: Plan, drawn: Sequence[Series], x: Scale) -> Iterator[str]:
    """A band for each merged range in its winner's colour, named where there is room."""
    styles = {series.label: series.style for series in drawn}
    for range, label in plan.chosen:
        left, right = _edges(range, x)
        style = styles.get(label, "op")
        hint = html.escape(f"{range} runs {label}")
        yield (
            f'<g class="band {style}"><title>{hint}</title>'
            f'<rect x="{left:.1f}" y="{_TOP:.1f}" width="{right - left:.1f}" '
            f'height="{_BOTTOM - _TOP:.1f}"/>'
            f'<rect class="cap" x="{left + 1:.1f}" y="{_TOP - 4:.1f}" '
            f'width="{max(right - left - 2, 1):.1f}" height="4"/></g>'
        )
        middle = (left + right) / 2
        for row, text in ((_TOP - 26, _short(label)), (_TOP - 11, _spoken(range))):
            if len(text) * _CHARACTER < right - left:
                kind = "name" if row == _TOP - 26 else "tick"
                yield _text(middle, row, text, f"{kind} middle")


def _edges(range: Range, x: Scale) -> tuple[float, float]:
    left = x.start if range.start <= x.low else x(range.start - 0.5)
    return left, x(range.end + 0.5) if range.bounded else x.end


def _spoken(range: Range) -> str:
    if not range.bounded:
        return "all sizes" if range.start == 0 else f"from {range.start}"
    return f"up to {int(range.end)}" if range.start == 0 else f"{range.start} to {int(range.end)}"


def _time_axis(y: Scale, x: Scale) -> Iterator[str]:
    for tick in ticks_of_times(y.low, y.high):
        at = y(tick)
        yield f'<line class="grid" x1="{x.start}" x2="{x.end:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield _text(x.start - 9, at + 4, shown_time(tick), "tick end")
    yield _upright("time of one call")


def _ratio_axis(y: Scale, x: Scale) -> Iterator[str]:
    for tick in (1.0, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 2.5, 3.0):
        if tick > y.high or (tick == 1.02 and y.high > 1.3) or (tick == 1.05 and y.high > 2):
            continue
        at = y(tick)
        yield f'<line class="grid" x1="{x.start}" x2="{x.end:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield _text(x.start - 9, at + 4, f"{tick:g}x", "tick end")
    yield _upright("times the fastest")


def _upright(text: str) -> str:
    place = f"translate(14 {(_TOP + _BOTTOM) / 2:.0f}) rotate(-90)"
    return f'<text class="axis middle" transform="{place}">{text}</text>'


def _size_axis(plan: Plan, sizes: Sequence[int], x: Scale) -> Iterator[str]:
    yield f'<line class="rule" x1="{x.start}" x2="{x.end:.1f}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>'
    for range, _ in plan.chosen[:-1]:
        at = _edges(range, x)[1]
        yield f'<line class="split" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_BOTTOM}"/>'
    free_from = -math.inf
    for size in sizes:
        at, half = x(size), len(str(size)) * _CHARACTER / 2
        yield (
            f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="{_BOTTOM}" y2="{_BOTTOM + 5}"/>'
        )
        if at - half > free_from:
            yield _text(at, _BOTTOM + 19, str(size), "tick middle")
            free_from = at + half + 6
    name = f"size: {plan.dispatch_on}" if plan.dispatch_on else "size"
    yield _text((x.start + x.end) / 2, _BOTTOM + 43, name, "axis middle")


def _line(series: Series, x: Scale, y: Scale) -> Iterator[str]:
    points = " ".join(f"{x(d.size):.1f},{y(d.milliseconds):.1f}" for d in series.dots)
    yield f'<g class="line {series.style}"><polyline points="{points}"/>'
    for dot in series.dots:
        top = y(dot.milliseconds + dot.spread)
        bottom = y(max(dot.milliseconds - dot.spread, dot.milliseconds / 2, y.low))
        if bottom - top > 8:
            yield f'<path class="spread" d="M{x(dot.size):.1f},{top:.1f}V{bottom:.1f}"/>'
    for size, reason in series.failures:
        yield (
            f'<path class="failed" d="M{x(size) - 4:.1f},{_TOP + 6}l8,8m0,-8l-8,8">'
            f"<title>{html.escape(f'{series.label} at {size}: {reason}')}</title></path>"
        )
    yield "</g>"


def _dots(series: Series, x: Scale, y: Scale, shown: Callable[[float], str]) -> Iterator[str]:
    """The dots of a line, those of the candidate that runs larger and with a border."""
    yield f'<g class="line {series.style}">'
    for dot in series.dots:
        hint = f"{series.label} at {dot.size}: {shown(dot.milliseconds)}"
        hint += f" ± {shown(dot.spread)}" if dot.spread else ""
        hint += ", runs here" if dot.runs else ""
        kind, radius = (' class="runs"', 5.5) if dot.runs else ("", 3)
        yield (
            f'<circle{kind} cx="{x(dot.size):.1f}" cy="{y(dot.milliseconds):.1f}" r="{radius}">'
            f"<title>{html.escape(hint)}</title></circle>"
        )
    yield "</g>"


def _line_labels(drawn: Sequence[Series], x: Scale, y: Scale) -> Iterator[str]:
    """Each line's name at its right end; names that would overlap are moved apart."""
    ends = [(y(s.dots[-1].milliseconds), x(s.dots[-1].size), s) for s in drawn]
    ends.sort(key=lambda end: end[0])
    wanted = [at for at, _, _ in ends]
    for (at, px, series), row in zip(ends, _spread_out(wanted, 16, _TOP, _BOTTOM), strict=True):
        edge = x.end + 6
        yield (
            f'<g class="line {series.style}"><polyline class="leader" '
            f'points="{px + 8:.1f},{at:.1f} {x.end - 4:.1f},{at:.1f} {edge + 6:.1f},{row:.1f}"/>'
            "</g>"
        )
        yield _text(edge + 10, row + 4, _short(series.label), f"name {series.style}")


def _spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending positions near ``wanted`` that keep ``gap`` between them, inside if they fit.

    >>> _spread_out([10, 11, 50], 16, 0, 100)
    [10, 26, 50]
    >>> _spread_out([90, 99, 100], 16, 0, 100)
    [68, 84, 100]
    """
    placed: list[float] = []
    for at in wanted:
        placed.append(max(at, placed[-1] + gap) if placed else at)
    limit = high
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    if placed and placed[0] < low:
        shift = low - placed[0]
        placed = [at + shift for at in placed]
    return placed


def _bars(plan: Plan, drawn: Sequence[Series]) -> str:
    """One size alone: a bar for each candidate, the fastest first."""
    ranked = sorted(drawn, key=lambda series: series.dots[0].milliseconds)
    left = 24 + _CHARACTER * max(len(_short(series.label)) for series in ranked)
    longest = max(series.dots[0].milliseconds for series in ranked)
    parts = []
    for i, series in enumerate(ranked):
        (dot,) = series.dots
        top = 14 + 34 * i
        width = max(dot.milliseconds / longest * (WIDTH - left - 170), 1)
        time = shown_time(dot.milliseconds)
        hint = html.escape(f"{series.label}: {time} ± {shown_time(dot.spread)}")
        note = "  runs" if dot.runs else ""
        parts += [
            _text(left - 10, top + 16, _short(series.label), "name end"),
            f'<g class="bar {series.style}"><title>{hint}</title>'
            f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="22" rx="3"/></g>',
            _text(left + width + 8, top + 16, time + note, "tick"),
        ]
    title = f"Time of one call of {plan.op} at the size {ranked[0].dots[0].size}"
    return _element(title, 20 + 34 * len(ranked), parts)


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}</text>'


def _short(label: str) -> str:
    return label if len(label) <= 30 else label[:28] + "…"


# ---------------------------------------------------------------------------------------------
# matplotlib.


def plot(plan: Plan, ax: Any = None) -> Any:
    """Draw the chart with matplotlib; see ``Plan.plot``."""
    drawn = [series for series in series_of(plan) if series.dots]
    if not drawn:
        raise ValueError(f"{plan.op}: there is nothing to plot, since nothing was measured")
    try:
        import matplotlib.pyplot as plt
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
    except ImportError as error:
        raise ImportError(
            "plot() needs matplotlib: pip install matplotlib. to_html() draws the same chart and "
            "needs nothing"
        ) from error
    if ax is None:
        _, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    sizes = sorted({dot.size for series in drawn for dot in series.dots})
    low, high = span_of_sizes(plan, sizes)
    colours = {}
    for i, series in enumerate(drawn):
        colours[series.label] = "0.45" if series.style == "op" else f"C{i % 10}"
        ax.errorbar(
            [dot.size for dot in series.dots],
            [dot.milliseconds * 1e3 for dot in series.dots],
            yerr=[dot.spread * 1e3 for dot in series.dots],
            marker="o",
            linestyle="--" if series.style == "op" else "-",
            color=colours[series.label],
            label=series.label,
        )
    for range, label in plan.chosen:
        end = range.end + 0.5 if range.bounded else high
        ax.axvspan(max(range.start - 0.5, low), end, alpha=0.12, color=colours.get(label, "0.5"))
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylabel="time of one call (us)")
    ax.set_xlabel(f"size: {plan.dispatch_on}" if plan.dispatch_on else "size")
    ax.xaxis.set_major_locator(FixedLocator(sizes))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_title(plan.op)
    ax.legend()
    return ax
