"""A fit as one HTML page: no scripts, nothing from elsewhere; light or dark as the reader's screen, plain on paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from daskem.engine.planner import size
from daskem.report.charts import convergence_chart
from daskem.report.convergence import Convergence
from daskem.report.progress import duration

__all__ = ["Page", "Table"]

STYLE = (
    """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2430;--quiet:#5b6675;--line:#d5dbe3;--data:#3f6ea8;--part:#c2701c;
--k0:#b3261e;--k1:#0b6b3a;--k2:#6a3fb0;--k3:#9a5b00;--k4:#00708a;--k5:#a3246e;--k6:#4d5a1f;--k7:#404a58}
@media (prefers-color-scheme:dark){:root{--paper:#14181e;--ink:#e6eaf0;--quiet:#9aa6b5;--line:#36404d;--data:#7fb0ea;
--part:#f0a65a;--k0:#ff8a80;--k1:#6fdc9f;--k2:#c3a6ff;--k3:#ffc266;--k4:#6fd6ef;--k5:#ff9fd0;--k6:#cfe07a;--k7:#d0d7e0}}
body{background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;
padding:0 1.2rem}
h1{font-size:1.5rem;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2rem 0 .5rem;border-bottom:1px solid var(--line)}
p{max-width:46rem}p.note,.lead{color:var(--quiet)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.15rem .9rem .15rem 0;text-align:left;vertical-align:top}
th{font-weight:600}.figures th{color:var(--quiet);font-weight:400;white-space:nowrap}
.cells{overflow-x:auto}.cells td,.cells th{text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
pre{white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid var(--line);padding:.6rem .8rem;font-size:13px}
.charts{display:flex;flex-wrap:wrap;gap:1rem}.charts svg{flex:1 1 19rem;max-width:30rem;height:auto}
svg text{fill:var(--quiet);font-size:11px}svg text.label{fill:var(--ink);font-size:12px}
.axis{fill:none;stroke:var(--quiet)}.stage{stroke:var(--quiet);stroke-dasharray:2 4}
polyline{fill:none;stroke:var(--data);stroke-width:1.5}polyline.part{stroke:var(--part);stroke-width:.8}
circle.exact{fill:var(--data)}circle.part{fill:var(--paper);stroke:var(--part)}
.density{fill:var(--data)}.component{fill:none;stroke-width:1.8}
svg text.number{font-weight:700;font-size:13px;paint-order:stroke;stroke:var(--paper);stroke-width:3px}
"""
    + "".join(f".component.k{k}{{stroke:var(--k{k})}}svg text.k{k}{{fill:var(--k{k})}}\n" for k in range(8))
    + """
@media print{body{margin:0;max-width:none;font-size:11pt}h2{break-after:avoid}svg,tr,pre{break-inside:avoid}}
"""
)


@dataclass(frozen=True)
class Table:
    """Cells to show, and a note below them."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def html(self) -> str:
        """Return the table."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in self.header)
        lines = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return f'<div class="cells"><table><tr>{head}</tr>{"".join(lines)}</table></div>{note}'


@dataclass(frozen=True)
class Page:
    """What a report shows.

    Attributes
    ----------
    title, model : the name of the page, and the model in words.
    metadata : what the model file says: the summary of the fit, of the data, and how both were made.
    components : the table of components, or its replacement.
    views : pictures of the components over the data, none where no data were given.
    diagnosis : what `daskem.diagnose` says, if it was asked.
    versions : of what made the file, where its metadata do not tell.
    """

    title: str
    model: str
    metadata: Mapping[str, Any]
    components: Table
    views: Sequence[str] = ()
    diagnosis: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def html(self) -> str:
        """Return the page."""
        sections = "".join(f"<section><h2>{name}</h2>{body}</section>" for name, body in self._sections() if body)
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head><body>"
            f'<h1>{escape(self.title)}</h1><p class="lead">{escape(self._verdict())}</p>{sections}</body></html>\n'
        )

    def _sections(self) -> Iterator[tuple[str, str]]:
        yield "Data and model", _figures(self._data())
        yield "Convergence", self._convergence()
        yield "Components", self.components.html()
        yield "Components over the data", self._views()
        yield "Diagnosis", f"<pre>{escape(self.diagnosis)}</pre>" if self.diagnosis else ""
        yield "Cost", _figures(self._cost())
        yield "To run it again", self._again()

    def _verdict(self) -> str:
        meta = self.metadata
        if "reason" not in meta:
            return "The model file says nothing of a fit."
        ended = "Converged" if meta["converged"] else "Not converged"
        return f"{ended} after {meta['steps']} steps and {meta['passes']:.4g} passes: {meta['reason']}."

    def _data(self) -> Iterator[tuple[str, str]]:
        data = self.metadata.get("data") or {}
        yield "model", self.model
        if data:
            rows, features = (*data["shape"], 1)[:2]
            yield "data", f"{data['name']}: {rows:,} rows x {features} features, {data['dtype']}"
        if data.get("columns"):
            yield "columns", ", ".join(data["columns"])
        if "objective" in self.metadata:
            chance = f" ± {self.metadata['objective_error']:.2g}" if self.metadata.get("objective_error") else ""
            yield (
                self.metadata.get("objective_kind") or "objective",
                f"{self.metadata['objective']:.8g}{chance} per row",
            )
        if len(self.metadata.get("starts") or ()) > 1:
            yield "starts", ", ".join(f"{value:.6g}" for value in self.metadata["starts"])
        for repair in self.metadata.get("events") or ():
            yield "repaired", f"component {repair['component']}, {repair['count']} times: {repair['what']}"

    def _convergence(self) -> str:
        if "trace" not in self.metadata:
            return "<p>The model file holds no trace of the fit.</p>"
        course = Convergence.of(self.metadata)
        charts = [
            convergence_chart(spent, course.objectives, course.runs(), unit, f"{course.kind} per row")
            for spent, unit in ((course.passes, "passes over the data"), (course.seconds, "seconds"))
        ]
        note = "Each mark is a step, at the objective it started from and at what had been spent when it ended."
        if not course.exact.all():
            note += (
                " Hollow marks are steps on a part of the rows, whose objective is that of the part; dotted lines "
                "are where another stage begins."
            )
        return f'<div class="charts">{"".join(charts)}</div><p class="note">{note}</p>'

    def _views(self) -> str:
        if not self.views:
            return ""
        note = (
            "Shade: a sample of rows, on a square-root scale (bars, of one feature). Ellipses or lines: two standard "
            "deviations around the mean of the rows that each component holds. Shown are the features that tell the "
            "components apart best."
        )
        return f'<div class="charts">{"".join(self.views)}</div><p class="note">{note}</p>'

    def _cost(self) -> Iterator[tuple[str, str]]:
        meta, plan = self.metadata, self.metadata.get("plan")
        if "passes" not in meta:
            return
        yield "passes", f"{meta['passes']:.4g} over the data, in {meta['steps']} steps"
        yield "time", f"{duration(meta['seconds'])}, the start included"
        if plan:
            yield "bytes", f"{size(meta['passes'] * plan['data'])} of rows gone through, {size(plan['data'])} a pass"
            yield (
                "tasks",
                f"{plan['tasks']:,} a pass, {plan['slots']} at once in each of {plan['processes']} process(es)",
            )
            yield "memory", f"planned peak {size(plan['peak'])} of {size(plan['limit'])} a process"
        if "peak_memory" in meta:
            yield "measured", f"{size(meta['peak_memory'])} resident at most, in the process that ran the fit"

    def _again(self) -> str:
        command = self.metadata.get("command")
        if command:
            again = f"<pre>{escape(command)}</pre>"
        else:
            options = self.metadata.get("options") or {}
            again = _figures((str(name), str(value)) for name, value in options.items() if value is not None)
        versions = self.metadata.get("versions") or self.versions
        told = ", ".join(f"{name} {version}" for name, version in versions.items())
        return again + (f'<p class="note">{escape(told)}</p>' if told else "")


def _figures(pairs: Iterator[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in pairs)
    return f'<table class="figures">{rows}</table>' if rows else ""
