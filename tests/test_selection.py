"""Selection among models, against scikit-learn's criteria and data whose number of components is known."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import zarr
from scipy.special import entr
from sklearn.mixture import GaussianMixture

import daskem
from daskem.errors import DaskEMWarning, MissingCapabilityError, OptionError
from daskem.models import Gaussian, KMeans, Mixture


def three_clouds() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.vstack([rng.normal(center, 1.0, (200, 2)) for center in (0.0, 6.0, 12.0)])


def candidates() -> list[Mixture]:
    return [Mixture(Gaussian(), k) for k in range(1, 6)]


def test_figures_are_scikit_learns() -> None:
    rows = three_clouds()
    found = daskem.select(candidates()[:3], da.from_array(rows, chunks=(97, 2)))
    for candidate in found.candidates:
        params = candidate.result.params
        k = len(params.weights)
        peer = GaussianMixture(k)
        peer.weights_, peer.means_ = params.weights, params.components.means
        peer.covariances_ = params.components.covariances
        peer.precisions_cholesky_ = params.components.precisions_cholesky
        assert candidate.n_parameters == 6 * k - 1
        np.testing.assert_allclose(candidate.log_prob, peer.score(rows) * len(rows), rtol=1e-10)
        np.testing.assert_allclose(candidate.aic, peer.aic(rows), rtol=1e-10)
        np.testing.assert_allclose(candidate.bic, peer.bic(rows), rtol=1e-10)
        entropy = entr(peer.predict_proba(rows)).sum()
        np.testing.assert_allclose(candidate.icl, peer.bic(rows) + 2 * entropy, rtol=1e-10)


@pytest.mark.parametrize("criterion", ["bic", "icl"])
def test_three_clouds_are_three(criterion: str) -> None:
    found = daskem.select(candidates(), three_clouds(), criterion)
    assert found.best.model == Mixture(Gaussian(), 3)
    table = found.table()
    assert [row["n_components"] for row in table] == [1, 2, 3, 4, 5]
    assert min(table, key=lambda row: row[criterion])["n_components"] == 3


def test_weights_count_as_rows() -> None:
    rows = three_clouds()
    weighted = daskem.select(candidates()[:1], rows, sample_weight=np.full(len(rows), 2.0)).candidates[0]
    repeated = daskem.select(candidates()[:1], np.vstack([rows, rows])).candidates[0]
    np.testing.assert_allclose(weighted.bic, repeated.bic, rtol=1e-10)


def test_all_candidates_do_without_the_same_rows(tmp_path) -> None:
    rows = three_clouds()
    spoilt = zarr.create_array(tmp_path / "x.zarr", data=rows, chunks=(100, 2))
    spoilt[150, 0] = np.nan
    with pytest.warns(DaskEMWarning, match="chunk"):
        found = daskem.select(candidates()[:2], str(tmp_path / "x.zarr"), on_bad_unit="skip")
    alone = daskem.select(candidates()[:2], np.delete(rows, np.s_[100:200], axis=0))
    for mine, other in zip(found.candidates, alone.candidates, strict=True):
        np.testing.assert_allclose(mine.bic, other.bic, rtol=1e-6)
        assert [(run.start, run.stop) for run in mine.result.left_out] == [(100, 200)]


def test_each_candidate_has_a_checkpoint_of_its_own(tmp_path) -> None:
    first, again = (daskem.select(candidates()[:2], three_clouds(), checkpoint=tmp_path) for _ in range(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    assert [c.bic for c in first.candidates] == [c.bic for c in again.candidates]


def test_what_cannot_be_compared_is_refused() -> None:
    rows = three_clouds()
    with pytest.raises(OptionError, match="no models"):
        daskem.select([], rows)
    with pytest.raises(OptionError, match="criterion='dic'"):
        daskem.select(candidates(), rows, "dic")
    with pytest.raises(MissingCapabilityError, match="log_prob"):
        daskem.select([KMeans(2)], rows)
