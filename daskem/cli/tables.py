"""What to show of fitted parameters, by family: as a table for people, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskem import models, tree
from daskem.cli.app import columns_of
from daskem.core import Array, Chunk, Float, Params
from daskem.models.natural import NaturalFamily
from daskem.starts import features_of

__all__ = ["component_cells", "component_table", "n_components", "shown"]

# Figures of a component that a table shows of each kind, such as the means of the first features.
SHOWN = 6
# What a table of a model without components shows.
LEAVES = ["parameter", "value"]
SINGULAR = {"probabilities": "probability"}


@dataclass(frozen=True)
class _Figures:
    """Figures of one kind: (k,), or (k, m) with what each of the m is about."""

    name: str
    values: Array
    about: Sequence[str] | None = None


def n_components(model: Any, params: Params, d: int) -> int:
    """Return the number of components, clusters, or values of the latent variable; `d` is the number of features."""
    if isinstance(model, (models.Mixture, models.KMeans)):
        return int(model.n_clusters if isinstance(model, models.KMeans) else model.n_components)
    return int(np.shape(model.posterior(params, Chunk(np.zeros((0, d)))))[1]) if hasattr(model, "posterior") else 1


def shown(model: Any, params: Params) -> dict[str, Any]:
    """Return ``components``, what can be said of each; ``params``, the leaves by name, of a model without any."""
    figures = list(_figures(model, params))
    if not figures:
        return {"params": {name or "params": leaf for name, leaf in tree.leaves(params)}}
    return {"components": [{each.name: each.values[k] for each in figures} for k in range(len(figures[0].values))]}


def component_table(model: Any, params: Params, columns: Sequence[str] | None = None) -> str:
    """Return the components as text, the heaviest first; of many features only the first."""
    header, lines, note = component_cells(model, params, columns)
    if header == LEAVES:
        return "\n".join(f"{name:<11} {text}" for name, text in lines)
    return columns_of(header, lines) + (f"\n({note})" if note else "")


def component_cells(
    model: Any, params: Params, columns: Sequence[str] | None = None
) -> tuple[list[str], list[list[str]], str]:
    """Return header, lines and a note of a table of the components; of the parameters, for a model without any."""
    figures = list(_figures(model, params, columns))
    if not figures:
        return LEAVES, [[name or "params", _text(leaf)] for name, leaf in tree.leaves(params)], ""
    weights = getattr(params, "weights", None)
    order = range(len(figures[0].values)) if weights is None else np.argsort(-weights, kind="stable")
    header, lines = ["component"], [[str(k)] for k in order]
    left_out = 0
    for each in figures:
        about = each.about or ()
        header += [f"{each.name}[{what}]" for what in about[:SHOWN]] if each.about else [each.name]
        left_out = max(left_out, len(about) - SHOWN)
        for line, k in zip(lines, order, strict=True):
            line += [f"{value:.4g}" for value in np.atleast_1d(each.values[k])[:SHOWN]]
    return header, lines, f"{left_out} more features are not shown" if left_out > 0 else ""


def _figures(model: Any, params: Params, columns: Sequence[str] | None = None) -> Iterator[_Figures]:
    d = features_of(model, params)
    names = list(columns) if columns else [str(j) for j in range(d or 0)]
    if isinstance(model, models.KMeans):
        yield _Figures("center", params.centers, names)
    elif isinstance(model, models.Mixture):
        yield _Figures("weight", params.weights)
        yield from _of_family(model.family, params.components, names)


def _of_family(family: Any, params: Params, names: list[str]) -> Iterator[_Figures]:
    if isinstance(family, models.Product):
        groups = zip(family.families.items(), family.columns.values(), params.groups, strict=True)  # type: ignore[union-attr]
        for (group, member), columns, part in groups:
            for each in _of_family(member, part, [names[int(j)] for j in columns]):
                yield _Figures(f"{group}.{each.name}", each.values, each.about)
    elif isinstance(family, models.StudentT):
        yield _Figures("location", params.means, names)
        yield _Figures("scale", _deviations(family, params), names)
        yield _Figures("dof", params.dof)
    elif isinstance(family, models.Gaussian):
        yield _Figures("mean", params.means, names)
        yield _Figures("sd", _deviations(family, params), names)
    elif isinstance(family, models.Categorical):
        levels = [f"{name}={level}" for name, count in zip(names, params.levels, strict=True) for level in range(count)]
        yield _Figures("probability", params.probabilities, levels)
    elif isinstance(family, NaturalFamily):
        for field in family.fields:
            values = getattr(params, field)
            name = SINGULAR.get(field, field.removesuffix("s"))
            yield _Figures(name, values, names if values.ndim == 2 else None)


def _deviations(family: Any, params: Params) -> Float:
    variances = models.SHAPES[family.covariance].variances(params.covariances)
    return np.broadcast_to(np.sqrt(variances), params.means.shape)


def _text(leaf: Any) -> str:
    text = np.array2string(np.asarray(leaf), precision=6, threshold=20, max_line_width=100)
    return text.replace("\n", "\n" + 12 * " ")
