"""Selection among models, against scikit-learn's criteria and data whose number of components is known."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from scipy.special import entr
from sklearn.mixture import GaussianMixture

import daskem
from daskem.errors import MissingCapabilityError, OptionError
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


def test_what_cannot_be_compared_is_refused() -> None:
    rows = three_clouds()
    with pytest.raises(OptionError, match="no models"):
        daskem.select([], rows)
    with pytest.raises(OptionError, match="criterion='dic'"):
        daskem.select(candidates(), rows, "dic")
    with pytest.raises(MissingCapabilityError, match="log_prob"):
        daskem.select([KMeans(2)], rows)
