"""A fit as a piece of HTML for notebooks: convergence at a glance, and what it cost."""

from __future__ import annotations

from html import escape
from typing import Any

from daskem.core import HasLogProb, objective_kind
from daskem.fit import FitResult

__all__ = ["fit_html", "sparkline"]

WIDTH, HEIGHT, MARGIN = 220, 40, 3


def fit_html(result: FitResult) -> str:
    """Return a self-contained HTML fragment: a sparkline of the objective by step, and the figures of the fit."""
    last, plan = result.trace[-1], result.plan
    # Only a model of densities has an objective in nats: that of k-means is minus a squared distance.
    unit = "nats per row" if isinstance(result.model, HasLogProb) else "per row"
    chance = f" (Monte Carlo error {last.error:.2g})" if last.error else ""
    figures = {
        objective_kind(result.model): f"{last.objective:.6g}{chance} {unit}",
        "ended": f"{'converged' if result.converged else 'not converged'}: {result.reason}",
        "cost": f"{result.passes:g} passes, {result.seconds:.3g} s",
        "data": f"{plan.n_rows:,} rows x {plan.n_features} features, {plan.data / 1e9:.3g} GB",
        "memory": f"planned peak {plan.peak / 1e9:.3g} GB of {plan.limit / 1e9:.3g} GB",
    }
    if result.events:
        figures["events"] = f"{len(result.events)}, the last: {result.events[-1].what}"
    rows = "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in figures.items())
    line = sparkline([info.objective for info in result.trace])
    return f'<div class="daskem-fit">{line}<table>{rows}</table></div>'


def sparkline(values: list[float]) -> str:
    """Return a small SVG line chart of `values`, from the lowest at the bottom to the highest at the top."""
    low, high = min(values), max(values)
    x_step = (WIDTH - 2 * MARGIN) / max(1, len(values) - 1)
    y_scale = (HEIGHT - 2 * MARGIN) / ((high - low) or 1.0)
    points: list[tuple[float, float]] = [
        (MARGIN + i * x_step, HEIGHT - MARGIN - (value - low) * y_scale) for i, value in enumerate(values)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    attributes: dict[str, Any] = {"width": WIDTH, "height": HEIGHT, "role": "img"}
    head = " ".join(f'{name}="{value}"' for name, value in attributes.items())
    return (
        f"<svg {head}><title>objective by step, {low:.6g} to {high:.6g}</title>"
        f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )
