"""Line charts and density views as SVG text: coloured by the page's style, so that light, dark and print all work."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from daskem.core import Array, Float

__all__ = ["Ellipse", "Frame", "convergence_chart", "density_view", "histogram_view", "tick_labels", "ticks"]

# Shades of a density, and bins along an axis.
SHADES, BINS = 8, 48
# Colours of the components that the page's style has.
COLORS = 8


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers from `low` to `high`, at most `most` of them: multiples of 1, 2 or 5 powers of ten."""
    raw = (high - low) / most
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(unit * power for unit in (1, 2, 5, 10) if unit * power >= raw)
    numbers = np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1)
    # Adding zero makes a zero of a negative one.
    return [float(number * step) + 0.0 for number in numbers]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Return numbers as text, with as many digits as it takes to tell them apart."""
    for digits in range(6, 17):
        texts = [f"{value:.{digits}g}" for value in values]
        if len(set(texts)) == len(texts):
            break
    return texts


@dataclass(frozen=True)
class Frame:
    """The axes of a chart: what is shown from where to where, in a picture of `width` x `height` pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str
    width: int = 420
    height: int = 270
    left: int = 64
    bottom: int = 40

    @classmethod
    def around(cls, x: Float, y: Float, x_label: str, y_label: str, **size: int) -> Frame:
        """Return the axes that show all of some points, with some room around them and for what is written there."""
        longest = max(map(len, tick_labels(ticks(*_padded(y)))), default=0)
        size = {"left": max(cls.left, 28 + 7 * longest), **size}
        return cls(_padded(x), _padded(y), x_label, y_label, **size)

    def at(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Return where points lie in the picture."""
        across = (np.asarray(x) - self.x[0]) / (self.x[1] - self.x[0])
        up = (np.asarray(y) - self.y[0]) / (self.y[1] - self.y[0])
        return (
            self.left + across * (self.width - self.left - 10),
            (self.height - self.bottom) - up * (self.height - self.bottom - 10),
        )

    def picture(self, title: str, marks: Iterator[str] | Sequence[str]) -> str:
        """Return the chart: `marks` within axes."""
        inside = "".join(marks)
        (left, right), (bottom, top) = self.at(self.x, self.y)
        # One page holds many charts, whose ids must differ.
        clip = f"c{zlib.crc32(f'{self}{title}{inside}'.encode()):x}"
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img"><title>{escape(title)}</title>'
            f'<clipPath id="{clip}"><rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}"/></clipPath><g clip-path="url(#{clip})">{inside}</g>'
            f'<path class="axis" d="M{left:.1f} {top:.1f}V{bottom:.1f}H{right:.1f}"/>{"".join(self._labels())}</svg>'
        )

    def _labels(self) -> Iterator[str]:
        bottom, middle = self.height - self.bottom, (self.height - self.bottom) / 2
        across, up = ticks(*self.x), ticks(*self.y)
        for value, text in zip(across, tick_labels(across), strict=True):
            x, _ = self.at(value, self.y[0])
            yield f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{text}</text>'
        for value, text in zip(up, tick_labels(up), strict=True):
            _, y = self.at(self.x[0], value)
            yield f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        center = (self.left + self.width - 10) / 2
        below = f'x="{center}" y="{self.height - 6}" text-anchor="middle"'
        yield f'<text class="label" {below}>{escape(self.x_label)}</text>'
        turned = f'transform="rotate(-90 13 {middle})"'
        yield f'<text class="label" x="13" y="{middle}" text-anchor="middle" {turned}>{escape(self.y_label)}</text>'


@dataclass(frozen=True, eq=False)
class Ellipse:
    """A component in one or two features: its number, mean (d,), and covariance (d, d)."""

    component: int
    mean: Float
    covariance: Float

    def outline(self, deviations: float = 2.0, points: int = 49) -> Float:
        """Return points (n, 2) so many standard deviations from the mean."""
        values, vectors = np.linalg.eigh(self.covariance)
        angle = np.linspace(0.0, 2.0 * np.pi, points)
        circle = np.column_stack([np.cos(angle), np.sin(angle)])
        return np.asarray(self.mean + deviations * circle * np.sqrt(np.maximum(values, 0.0)) @ vectors.T)


def convergence_chart(
    spent: Float, objectives: Float, runs: Sequence[tuple[slice, str, bool]], x_label: str, y_label: str
) -> str:
    """Return the objective against what was spent; `runs` are those of `Convergence.runs`."""
    frame = Frame.around(np.append(spent, 0.0), objectives, x_label, y_label)

    def marks() -> Iterator[str]:
        for i, (steps, stage, exact) in enumerate(runs):
            xs, ys = frame.at(spent[steps], objectives[steps])
            if i:
                edge, _ = frame.at(spent[steps.start - 1], frame.y[0])
                yield f'<path class="stage" d="M{edge:.1f} 0V{frame.height}"/>'
            kind = "exact" if exact else "part"
            yield f'<polyline class="{kind}" points="{_points(xs, ys)}"/>'
            for x, y, value in zip(xs, ys, objectives[steps], strict=True):
                told = escape(f"{stage or 'step'}: {value:.8g}")
                yield f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{told}</title></circle>'

    return frame.picture(f"{y_label} against {x_label}", marks())


def density_view(x: Float, y: Float, weight: Float, ellipses: Sequence[Ellipse], x_label: str, y_label: str) -> str:
    """Return a density of rows in two features, and over it the components."""
    frame = Frame(_bulk(x), _bulk(y), x_label, y_label, width=340, height=300)
    counts, x_edges, y_edges = np.histogram2d(x, y, BINS, (frame.x, frame.y), weights=weight)
    left, top = frame.at(x_edges[:-1], y_edges[1:])
    right, bottom = frame.at(x_edges[1], y_edges[0])
    wide, high = float(right - left[0]), float(bottom - top[0])
    # The square root keeps thin regions visible beside dense ones.
    shade = np.ceil(np.sqrt(counts / max(counts.max(), 1e-300)) * SHADES).astype(int)

    def marks() -> Iterator[str]:
        for level in range(1, SHADES + 1):
            cells = "".join(
                f"M{left[i]:.1f} {top[j]:.1f}h{wide:.2f}v{high:.2f}h{-wide:.2f}z"
                for i, j in np.argwhere(shade == level)
            )
            yield f'<path class="density" fill-opacity="{level / SHADES:.3f}" d="{cells}"/>'
        yield from _components(frame, ellipses)

    return frame.picture(f"{y_label} against {x_label}: density of rows, and components", marks())


def histogram_view(x: Float, weight: Float, components: Sequence[Ellipse], label: str) -> str:
    """Return a histogram of rows in one feature, and over it each component's mean and two standard deviations."""
    low, high = _bulk(x)
    counts, edges = np.histogram(x, 2 * BINS, (low, high), weights=weight)
    frame = Frame((low, high), (0.0, 1.3 * float(max(counts.max(), 1e-300))), label, "rows of the sample", width=520)

    def marks() -> Iterator[str]:
        for count, start, stop in zip(counts, edges[:-1], edges[1:], strict=True):
            (x0, x1), (y0, y1) = frame.at((start, stop), (0.0, count))
            yield f'<rect class="density" x="{x0:.1f}" y="{y1:.1f}" width="{x1 - x0:.2f}" height="{y0 - y1:.2f}"/>'
        for each in components:
            k, mean, sd = each.component, each.mean[0], np.sqrt(each.covariance[0, 0])
            (x0, x1, middle), (y, _, _) = frame.at((mean - 2 * sd, mean + 2 * sd, mean), (frame.y[1] * 0.93,) * 3)
            place = y + 12 * (k % 3)
            yield f'<path class="component k{k % COLORS}" d="M{x0:.1f} {place:.1f}H{x1:.1f}"/>'
            yield _number(k, middle, place)

    return frame.picture(f"{label}: rows, and components", marks())


def _components(frame: Frame, ellipses: Sequence[Ellipse]) -> Iterator[str]:
    for each in ellipses:
        xs, ys = frame.at(*each.outline().T)
        yield f'<polygon class="component k{each.component % COLORS}" points="{_points(xs, ys)}"/>'
    for each in ellipses:
        yield _number(each.component, *frame.at(*each.mean))


def _number(component: int, x: Any, y: Any) -> str:
    place = f'x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle"'
    return f'<text class="number k{component % COLORS}" {place}>{component}</text>'


def _points(xs: Float, ys: Float) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))


def _padded(values: Array) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    room = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - room, high + room


def _bulk(values: Array) -> tuple[float, float]:
    """Return the range of nearly all values: a few far away would squeeze the rest into one bin."""
    low, high = np.quantile(values, [0.002, 0.998])
    return _padded(np.array([low, high]))
