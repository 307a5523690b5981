"""Gaussian mixtures with a known truth, as many rows as wanted: for demonstrations, tests and benchmarks.

Every number depends on the seed and on its row alone, so that the bits of a store depend neither on how many workers
wrote it nor on its chunks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist
from scipy.special import ndtri

from daskem.core import Array, Chunk, Float, Int
from daskem.data import Dataset, Output
from daskem.data.generated import LABELS, ROWS, create_store
from daskem.engine import start_engine, write_rows
from daskem.errors import OptionError
from daskem.models import Gaussian, Mixture, MixtureParams
from daskem.persist import check_new_file, save_model

__all__ = ["CHUNK_ROWS", "Order", "SyntheticSource", "Truth", "generate_mixture", "make_truth"]

Order = Literal["shuffled", "sorted"]
DTYPES = ("float16", "float32", "float64")
# About 8 MB of float32 in a chunk of 32 features: small beside any worker, large enough for object stores.
CHUNK_ROWS = 65_536
# Rows drawn at a time, so that the double precision temporaries stay in the cache.
BLOCK_ROWS = 4_096
# What random numbers are drawn for; streams of different steps never meet (see `daskem.core.Chunk.uniform`).
COMPONENT_STEP, NOISE_STEP, TRUTH_STEP = 0, 1, 2
# Half the spacing of the uniform numbers: none is then 0, whose normal quantile is minus infinity.
HALF_ULP = 2.0**-54


@dataclass(frozen=True, eq=False)
class Truth:
    """The mixture that rows are drawn from: x = mean_y + H_y (sd_y * z), z standard normal.

    H_y = I - 2 v_y v_y^T is the reflection along `axes`, so that the covariance, H diag(sd^2) H, is full, and a row
    costs O(d) operations in an order of its own: a matrix product's last bits depend on how many rows it is given.

    Attributes
    ----------
    weights : (k,), sum to one.
    means : (k, d).
    sds : (k, d) standard deviations along the reflected axes.
    axes : (k, d) unit vectors v.
    """

    weights: Float
    means: Float
    sds: Float
    axes: Float

    @property
    def covariances(self) -> Float:
        """Covariances (k, d, d)."""
        reflections = np.eye(self.means.shape[1]) - 2.0 * self.axes[:, :, None] * self.axes[:, None, :]
        return np.asarray((reflections * self.sds[:, None, :] ** 2) @ reflections)

    def model(self) -> tuple[Mixture, MixtureParams]:
        """Return the truth as a model of daskem and its parameters."""
        k = len(self.weights)
        mixture = Mixture(
            Gaussian("full"),
            k,
            weights_init=self.weights,
            means_init=self.means,
            precisions_init=np.linalg.inv(self.covariances),
        )
        # Where all three are given, the sample only says how many features there are and where moments are taken about.
        params = mixture.init(Chunk(np.concatenate([self.means, self.means + 1.0])), np.random.default_rng(0))
        return Mixture(Gaussian("full"), k), params


def make_truth(n_components: int, n_features: int, *, separation: float = 4.0, seed: int = 0) -> Truth:
    """Return a random mixture.

    Parameters
    ----------
    separation : distance between the two means that are nearest to each other, in units of the components' root mean
        square standard deviation, which is one.

    Raises
    ------
    OptionError
        If a number is not positive.
    """
    for name, value in (("n_components", n_components), ("n_features", n_features), ("separation", separation)):
        if not value > 0:
            raise OptionError(f"{name}={value} is not positive.")
    rng = np.random.Generator(np.random.Philox(key=_key(seed), counter=[0, 0, TRUTH_STEP, 0]))
    weights = rng.uniform(0.5, 1.5, n_components)
    means = rng.standard_normal((n_components, n_features))
    if n_components > 1:
        means *= separation / pdist(means).min()
    sds = rng.uniform(0.5, 1.5, (n_components, n_features))
    sds /= np.sqrt((sds**2).mean(axis=1, keepdims=True))
    axes = rng.standard_normal((n_components, n_features))
    return Truth(weights / weights.sum(), means, sds, axes / np.linalg.norm(axes, axis=1, keepdims=True))


@dataclass(frozen=True, eq=False)
class SyntheticSource:
    """Rows drawn from `truth` when they are read: a `daskem.data.Source` without a store.

    Parameters
    ----------
    truth : what rows are drawn from.
    n_rows : number of rows.
    dtype : float16, float32 or float64.
    seed : seed of the draws.
    order : "shuffled", where each row draws its component, or "sorted", where rows of a component follow each other.
    columns : names of the features.
    """

    truth: Truth
    n_rows: int
    dtype: np.dtype[Any]
    seed: int = 0
    order: Order = "shuffled"
    columns: tuple[str, ...] | None = None
    name: str = "synthetic mixture"
    in_process: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_rows, self.truth.means.shape[1]

    def read(self, start: int, stop: int) -> Array:
        """Return rows ``start:stop``."""
        rows = np.empty((stop - start, self.shape[1]), self.dtype)
        for at in range(start, stop, BLOCK_ROWS):
            end = min(at + BLOCK_ROWS, stop)
            rows[at - start : end - start] = self._draw(at, end)
        return rows

    def labels(self, start: int, stop: int) -> Int:
        """Return the component of each of rows ``start:stop``, (n,)."""
        if self.order == "sorted":
            position = (np.arange(start, stop) + 0.5) / self.n_rows
        else:
            position = _uniform(self.seed, COMPONENT_STEP, start, stop, 1)[:, 0]
        # Rounding may leave the last cumulative weight a little below one.
        chosen = np.searchsorted(np.cumsum(self.truth.weights)[:-1], position, side="right")
        return chosen.astype(np.int64)

    def unit_boundary(self, row: int) -> int:
        return min(row, self.n_rows)

    def piece_boundary(self, row: int) -> int:
        return min(row, self.n_rows)

    def read_bytes(self, rows: int) -> int:
        """Return the peak bytes: the rows, and the temporaries of one block."""
        d = self.shape[1]
        return rows * d * self.dtype.itemsize + min(rows, BLOCK_ROWS) * 8 * (6 * d + 16)

    def locate(self, start: int, stop: int) -> str:
        return f"rows {start}:{stop}"

    def bind(self, start: int, stop: int) -> SyntheticSource:
        return self

    def _draw(self, start: int, stop: int) -> Float:
        labels = self.labels(start, stop)
        # The inverse distribution function, because it treats every number by itself; numpy's own normal numbers take
        # a varying number of draws, so that a row's place in the stream would depend on the rows before it.
        scaled = ndtri(_uniform(self.seed, NOISE_STEP, start, stop, self.shape[1]) + HALF_ULP) * self.truth.sds[labels]
        axes = self.truth.axes[labels]
        scaled -= 2.0 * (scaled * axes).sum(axis=1, keepdims=True) * axes
        return np.asarray(scaled + self.truth.means[labels])


@dataclass(frozen=True, eq=False)
class _Write:
    source: SyntheticSource

    def __call__(self, chunk: Chunk) -> Mapping[str, Array]:
        labels = self.source.labels(chunk.start, chunk.start + len(chunk))
        return {ROWS: chunk.rows, LABELS: labels}


def generate_mixture(
    url: str | os.PathLike[str],
    n_rows: int,
    n_features: int,
    n_components: int,
    *,
    separation: float = 4.0,
    dtype: npt.DTypeLike = "float32",
    chunk_rows: int = CHUNK_ROWS,
    shard_rows: int | None = None,
    seed: int = 0,
    order: Order = "shuffled",
    columns: Sequence[str] | None = None,
    truth_path: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    memory_limit: Any = None,
) -> Truth:
    """Write a Gaussian mixture to a Zarr group, as Dask tasks: rows ``x`` (n, d) and their components ``labels`` (n,).

    Parameters
    ----------
    url : path or URL of the group to create.
    n_rows, n_features, n_components : sizes.
    separation : see `make_truth`.
    dtype : float16, float32 or float64.
    chunk_rows, shard_rows : rows of a stored chunk, and of a shard of several chunks (none by default).
    seed : the same seed gives the same bits, whatever the chunks and the workers.
    order : see `SyntheticSource`.
    columns : names of the features.
    truth_path : where to save the truth as a model file.
    overwrite : replace what daskem wrote there before.
    memory_limit : bytes, or text such as ``"2GB"``, that a process may reach.

    Returns
    -------
    Truth

    Raises
    ------
    OptionError
        Before any work, if an option cannot work or something is there already.
    """
    source = _source(n_rows, make_truth(n_components, n_features, separation=separation, seed=seed), dtype, seed, order)
    if truth_path is not None:
        check_new_file(truth_path, overwrite)
    # Planned before an old store is taken away. Blocks of one size at absolute offsets; there is no model to plan for.
    engine = start_engine(Dataset(source), None, cache="none", memory_limit=memory_limit)
    output = _create(url, source, chunk_rows, shard_rows, columns, overwrite, separation)
    write_rows(engine, _Write(source), output)
    if truth_path is not None:
        model, params = source.truth.model()
        metadata = {"truth": True, "seed": seed, "separation": separation, "order": order, "rows": n_rows}
        save_model(truth_path, model, params, metadata=metadata, overwrite=overwrite)
    return source.truth


def _source(n_rows: int, truth: Truth, dtype: npt.DTypeLike, seed: int, order: Order) -> SyntheticSource:
    kind = np.dtype(dtype)
    if kind.name not in DTYPES:
        raise OptionError(f"dtype={kind.name!r} is not one of {', '.join(map(repr, DTYPES))}.")
    if n_rows < 1:
        raise OptionError(f"n_rows={n_rows} is not positive.")
    if order not in ("shuffled", "sorted"):
        raise OptionError(f"order={order!r} is neither 'shuffled' nor 'sorted'.")
    return SyntheticSource(truth, n_rows, kind, _key(seed), order)


def _create(
    url: str | os.PathLike[str],
    source: SyntheticSource,
    chunk_rows: int,
    shard_rows: int | None,
    columns: Sequence[str] | None,
    overwrite: bool,
    separation: float,
) -> Output:
    return create_store(
        url,
        source.shape,
        source.dtype,
        chunk_rows,
        shard_rows=shard_rows,
        columns=columns,
        overwrite=overwrite,
        attributes={"daskem:seed": source.seed, "daskem:separation": separation, "daskem:order": source.order},
    )


def _uniform(seed: int, step: int, start: int, stop: int, size: int) -> Float:
    return Chunk(np.empty((stop - start, 0)), start=start, seed=seed).uniform(step, size)


def _key(seed: int) -> int:
    if seed < 0:
        raise OptionError(f"seed={seed} is negative.")
    return seed
