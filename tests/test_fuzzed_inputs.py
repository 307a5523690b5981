"""Any rows, weights, labels and chunks: what plain numpy finds, or one error of daskem before the first step ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

import daskem
from daskem.algorithms import BatchEM
from daskem.errors import DaskEMError
from daskem.models import Gaussian, Mixture

TYPES = ["f8", "f4", "f2", ">f8", ">f4", "i1", "u1", "i2", ">i4", "u4", "i8", "u8", "?"]
STEPS, FLOOR = 3, 0.5


@dataclass
class Plain:
    """Weights (k,), means (k, d) and covariances (k, d, d) of a mixture, and its mean log density before each step."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    objectives: list[float]


def plain_em(x: np.ndarray, weight: np.ndarray, labels: np.ndarray, start: Plain) -> Plain:
    """Fit a mixture by the textbook: solves and determinants of covariances, means first and then scatter."""
    w, mu, sigma = start.weights, start.means, start.covariances
    objectives = []
    for _ in range(STEPS):
        away = x[:, None, :] - mu
        square = np.einsum("nkd,knd->nk", away, np.linalg.solve(sigma, away.transpose(1, 2, 0)).transpose(0, 2, 1))
        joint = np.log(w) - 0.5 * (square + np.linalg.slogdet(2 * np.pi * sigma)[1])
        joint[(labels >= 0)[:, None] & (labels[:, None] != np.arange(len(w)))] = -np.inf
        log_prob = np.logaddexp.reduce(joint, axis=1)
        objectives.append(float(weight @ log_prob / weight.sum()))
        share = np.exp(joint - log_prob[:, None]) * weight[:, None]
        n = share.sum(axis=0)
        w, mu = n / n.sum(), (share.T @ x) / n[:, None]
        away = x[:, None, :] - mu
        sigma = np.einsum("nk,nkd,nke->kde", share / n, away, away) + FLOOR * np.eye(x.shape[1])
    return Plain(w, mu, sigma, objectives)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """Draw rows of a type, with a layout, weights, labels, holes, and how they are cut."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    n, d, k = draw(st.integers(12, 90)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    dtype = np.dtype(draw(st.sampled_from(TYPES)))
    rows = rng.normal(size=(n, d)) * 3 + rng.integers(k, size=(n, 1)) * 5
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        rows = np.clip(np.rint(rows * draw(st.sampled_from([1, 12]))), max(info.min, -100), min(info.max, 250))
    rows = (rows > 2 if dtype.kind == "b" else rows).astype(dtype)
    weight = draw(st.sampled_from([None, "f8", "f4", "u1", "some"]))
    if weight is not None:
        weight = rng.integers(0, 4, size=n).astype("f8" if weight == "some" else weight)
        weight[: n // 2] *= draw(st.sampled_from([0, 1]))
    labels = draw(st.sampled_from([None, "i1", "i8", "f8", ">i2"]))
    if labels is not None:
        labels = np.where(rng.random(n) < 0.3, rng.integers(k, size=n), -1).astype(labels)
    if dtype.kind == "f" and draw(st.integers(0, 4)) == 0:
        rows[rng.integers(n), rng.integers(d)] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    layout = draw(st.sampled_from(["C", "F", "reversed", "every other", "read only"]))
    kind = draw(st.sampled_from(["numpy", "dask", "dask, lengths unknown", "zarr"]))
    chunks = draw(st.lists(st.integers(1, n), min_size=1, max_size=4))
    return {"rows": laid_out(rows, layout), "weight": weight, "labels": labels, "kind": kind, "cuts": chunks, "k": k}


def laid_out(rows: np.ndarray, layout: str) -> np.ndarray:
    """Return the same rows, laid out otherwise in memory."""
    if layout == "F":
        return np.asfortranarray(rows)
    if layout == "reversed":
        return rows[::-1, ::-1].copy()[::-1, ::-1]
    if layout == "every other":
        return np.repeat(np.repeat(rows, 2, axis=0), 2, axis=1)[::2, ::2]
    rows = rows.copy()
    rows.setflags(write=layout != "read only")
    return rows


def source(table: dict[str, Any]) -> Any:
    """Return the rows as what a user would hand over, cut somewhere."""
    rows, cuts = table["rows"], table["cuts"]
    if table["kind"] == "numpy":
        return rows
    if table["kind"] == "zarr":
        # Zarr would leave out chunks of zeros, which daskem takes for missing ones.
        array = zarr.create_array(
            MemoryStore(),
            shape=rows.shape,
            chunks=(cuts[0], rows.shape[1]),
            dtype=rows.dtype,
            config={"write_empty_chunks": True},
        )
        array[...] = rows
        return array
    ends = sorted({min(sum(cuts[: i + 1]), len(rows)) for i in range(len(cuts))} | {len(rows)})
    x = da.from_array(rows, chunks=(tuple(np.diff([0, *ends]).tolist()), (rows.shape[1],)))
    # A choice of rows that dask cannot foresee the length of.
    return x[da.ones(len(x), dtype=bool, chunks=x.chunks[:1])] if table["kind"].endswith("unknown") else x


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def start_of(x: np.ndarray, weight: np.ndarray, k: int) -> Plain:
    """Return a start of components that overlap, so that none runs empty."""
    center = weight @ x / weight.sum()
    spread = np.sqrt(weight @ (x - center) ** 2 / weight.sum()) + 0.1
    means = center + 0.5 * spread * np.random.default_rng(0).normal(size=(k, x.shape[1]))
    return Plain(np.full(k, 1 / k), means, np.stack([np.diag(spread**2)] * k), [])


def fit(table: dict[str, Any], start: Plain) -> tuple[daskem.FitResult | None, int]:
    """Return the result, or None for an error of daskem, and the steps that were made."""
    made: list[int] = []
    precisions = np.stack([np.diag(1 / np.diag(one)) for one in start.covariances])
    model = Mixture(Gaussian(reg_covar=FLOOR), table["k"], "random", start.weights, start.means, precisions)
    try:
        result = daskem.fit(
            model,
            source(table),
            sample_weight=table["weight"],
            y=table["labels"],
            algorithm=BatchEM(),
            stop=daskem.MaxSteps(STEPS),
            callbacks=[lambda info, params: made.append(info.step)],
        )
    except DaskEMError:
        return None, len(made)
    return result, len(made)


@pytest.mark.filterwarnings("ignore::daskem.errors.DaskEMWarning")
@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(table=tables())
def test_any_table_gives_what_plain_numpy_gives_or_one_error(table):
    x, n = table["rows"].astype("f8"), len(table["rows"])
    weight = np.ones(n) if table["weight"] is None else table["weight"].astype("f8")
    labels = np.full(n, -1) if table["labels"] is None else table["labels"].astype(int)
    x, weight, labels = x[weight > 0], weight[weight > 0], labels[weight > 0]
    usable = len(x) > 0 and bool(np.isfinite(x).all()) and len(np.unique(x, axis=0)) >= min(2, table["k"])
    if not usable:
        x = np.where(np.isfinite(x), x, 0.0) if len(x) else np.zeros((1, x.shape[1]))
    start = start_of(x, weight if len(weight) else np.ones(1), table["k"])
    result, steps = fit(table, start)
    assert (result is not None) == usable
    if result is None:
        assert steps == 0
        return
    expected = plain_em(x, weight, labels, start)
    # Rows of single or half precision are computed in single precision.
    exact = table["rows"].dtype.newbyteorder("=") not in (np.dtype("f4"), np.dtype("f2"))
    close = {"rtol": 1e-10, "atol": 1e-10} if exact else {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose([info.objective for info in result.trace], expected.objectives, **close)
    np.testing.assert_allclose(result.params.weights, expected.weights, **close)
    np.testing.assert_allclose(result.params.components.means, expected.means, **close)
    np.testing.assert_allclose(result.params.components.covariances, expected.covariances, **close)
