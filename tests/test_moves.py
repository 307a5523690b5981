"""Ways out of a local maximum: what is proposed, what it promises, and what becomes of fits on samples first."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import zarr
from cases import CASES
from dask.distributed import Client, LocalCluster
from zarr.storage import LocalStore

import daskem
from daskem.algorithms import Progressive, progressive
from daskem.core import Chunk, StepInfo
from daskem.models import Gaussian, Mixture, NormalWishart, VariationalMixture
from daskem.models.mixture import MixtureParams
from daskem.models.split_merge import exchanges
from daskem.testing.models import MODEL_PROPERTIES
from daskem.testing.trial import bits, model_trial

# Two pairs of clusters far from each other. Of random rows as centers, few are one in each cluster.
CENTERS = np.array([[-20.0, 0.0], [-20.0, 8.0], [20.0, 0.0], [20.0, 8.0]])
MODEL = Mixture(Gaussian(), 4, init_method="random_from_data")
N = 32_000
# The mixtures of the table, with components enough for two to become one and a third two.
MIXTURES = {case.name: case for case in CASES if isinstance(case.model, Mixture) and not case.n_labels}


def nearest(rows: np.ndarray) -> np.ndarray:
    return ((rows[:, None] - CENTERS) ** 2).sum(axis=2).argmin(axis=1)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    return CENTERS[rng.integers(4, size=N)] + rng.standard_normal((N, 2))


@pytest.fixture(scope="module")
def store(rows, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("moves") / "x.zarr"
    zarr.create_array(LocalStore(path), data=rows, chunks=(4_000, 2))
    return str(path)


def fit(data, moves: bool = True, **options) -> daskem.FitResult:
    algorithm = Progressive(first=500, moves=moves)
    given = {"algorithm": algorithm, "stop": daskem.MaxPasses(5), "cache": "none", "seed": 0}
    return daskem.fit(MODEL, data, **given | options)


def stuck(rows: np.ndarray) -> tuple[Chunk, np.ndarray, MixtureParams]:
    """Return rows, with responsibilities and parameters at a local maximum: 3 has two clusters, 0 and 1 share one."""
    sample = Chunk(rows[:4_000])
    component = np.array([3, 3, 0, 2])[nearest(sample.rows)]
    component[(component == 0) & (sample.rows[:, 0] > 20)] = 1
    params = MixtureParams(np.full(4, 0.25), Gaussian().init(sample, np.eye(4)[component]))
    for _ in range(100):
        params = MODEL.m_step(MODEL.e_step(params, sample).stats, params)
    return sample, MODEL.posterior(params, sample), params


def test_em_stays_at_a_local_maximum_and_a_move_leads_away(rows):
    sample, _, params = stuck(rows)
    assert sorted(nearest(params.components.means).tolist()) != [0, 1, 2, 3]
    what, new = MODEL.moves(params, sample, np.random.default_rng(0))[0]
    assert what == "components 0 and 1 made one, and component 3 two"
    assert sorted(nearest(new.components.means).tolist()) == [0, 1, 2, 3]
    # Components that have no part in it stay.
    np.testing.assert_allclose(new.components.means[2], params.components.means[2], rtol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_move_brings_at_least_what_it_promises(rows, weighted):
    """The gain is that of a lower bound of the objective: of the rows as they are shared out."""
    sample, resp, params = stuck(rows)
    weight = np.random.default_rng(1).integers(3, size=len(sample)).astype(float) if weighted else None
    sample = replace(sample, weight=weight).present()
    resp = MODEL.posterior(params, sample)
    pair = replace(MODEL, n_components=2)
    found = exchanges(MODEL.family, params.components, resp, sample, pair, np.random.default_rng(0))
    assert len(found) == len({(one.merged, one.split) for one in found}) == 12
    assert [one.gain for one in found] == sorted((one.gain for one in found), reverse=True)
    before = MODEL.e_step(params, sample).objective
    assert found[0].gain > 0.3 * sample.total_weight
    for one in found:
        exchanged = one.exchanged(resp)
        np.testing.assert_allclose(exchanged.sum(axis=1), 1.0)
        n = exchanged.sum(axis=0) if weight is None else sample.weight @ exchanged
        new = MixtureParams(n / n.sum(), MODEL.family.init(sample, exchanged))
        # Rows of which a component has less than a twentieth are shared evenly between its halves.
        assert MODEL.e_step(new, sample).objective > before + one.gain - 0.01 * sample.total_weight


@pytest.mark.parametrize("name", MIXTURES)
def test_every_mixture_moves_to_parameters_of_its_own(name):
    case = MIXTURES[name]
    model = replace(case.model, n_components=4)
    trial = model_trial(model, case.draw(np.random.default_rng(2), 600))
    assert model.moves(trial.params, trial.chunk, trial.rng())
    MODEL_PROPERTIES["moves_are_params"].check(trial)


def test_components_that_mean_something_stay(rows):
    sample, _, params = stuck(rows)
    rng = np.random.default_rng(0)
    labelled = replace(sample, labels=np.full(len(sample), -1))
    assert MODEL.moves(params, labelled, rng) == []
    assert replace(MODEL, means_init=CENTERS).moves(params, sample, rng) == []
    assert Mixture(Gaussian(), 2).moves(MixtureParams(np.ones(2) / 2, None), labelled, rng) == []


def test_a_component_of_few_rows_is_not_split(rows):
    sample, _, params = stuck(rows)
    few = sample.select(slice(0, 60))
    assert MODEL.moves(params, few, np.random.default_rng(0)) == []


def test_a_fit_on_samples_first_leaves_a_local_maximum(store, caplog):
    left = fit(store, moves=False)
    assert sorted(nearest(left.params.components.means).tolist()) != [0, 1, 2, 3]
    with caplog.at_level(logging.INFO, logger="daskem"):
        found = fit(store)
    assert sorted(nearest(found.params.components.means).tolist()) == [0, 1, 2, 3]
    assert found.objective > left.objective + 0.3
    assert "2,000 rows: components 0 and 1 made one, and component 3 two" in caplog.text


def test_trials_are_counted_in_passes(store, monkeypatch):
    steps, climb = [], progressive._climb

    def counted(algorithm, problem, *rest):
        found = climb(algorithm, problem, *rest)
        steps.append(found[2])
        return found

    monkeypatch.setattr(progressive, "_climb", counted)
    trace, plain = fit(store).trace, fit(store, moves=False).trace
    # The first stage is too small for a move.
    first = [info.passes for info in trace if info.stage == "500 rows"]
    assert first == [info.passes for info in plain if info.stage == "500 rows"]
    passes = np.array([info.passes for info in trace if info.stage == "2,000 rows"])
    # A trial's first step looks at its start, too. One that led higher began the stage again; then others were tried
    # until a pass was spent.
    trials = np.diff(passes) * 16 - 1
    assert trials.sum() == sum(steps)
    assert trials[:-1].max() == steps[0] < 16 <= trials[-1] <= 32 + 1
    assert all(np.diff([info.passes for info in trace]) > 0)


def test_a_trial_that_would_not_get_there_ends_early(rows):
    sample, _, params = stuck(rows)

    class Slow:
        """Gains ten, nine, eight, ... nats a row."""

        def init(self, problem, params):
            return 10, 0.0

        def step(self, problem, state):
            gain, objective = state
            info = StepInfo(1, objective, 1.0, 11.0 - gain, 0.0, 0.0)
            return (gain - 1, objective + gain), info

    climb = progressive._climb
    assert climb(Slow(), sample, params, 26.0, 40.0)[1:] == (27.0, 4.0)
    # After five steps it is at 34, at a pace of eight: 35 more steps would lead to 314.
    assert climb(Slow(), sample, params, 313.0, 40.0)[2] > 5.0
    assert climb(Slow(), sample, params, 315.0, 40.0)[1:] == (34.0, 5.0)
    # Or where it has cost what it may.
    assert climb(Slow(), sample, params, 313.0, 3.0)[1:] == (19.0, 3.0)


def test_a_given_start_is_kept_to(rows, store):
    """Its components mean something: which is which must not change."""
    start = stuck(rows)[2]
    found, plain = fit(store, params=start), fit(store, moves=False, params=start)
    assert bits(found.params) == bits(plain.params)
    assert found.passes == plain.passes


def test_moves_give_the_same_bits_on_any_number_of_workers_and_go_on_where_they_stopped(store, tmp_path):
    def told(result):
        return bits(result.params), [(info.objective, info.passes, info.stage) for info in result.trace]

    expected = told(fit(store))
    for n_workers in (1, 3):
        with (
            LocalCluster(n_workers=n_workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0") as c,
            Client(c),
        ):
            assert told(fit(store)) == expected

    class Stopped(BaseException):
        pass

    def stop_at(step):
        def callback(info, params):
            if info.step == step:
                raise Stopped

        return callback

    kept = tmp_path / "kept"
    for step in (3, 6, 9):
        with pytest.raises(Stopped):
            fit(store, checkpoint=kept, checkpoint_interval=0, callbacks=[stop_at(step)])
    assert told(fit(store, checkpoint=kept, checkpoint_interval=0)) == expected


def test_starts_that_run_side_by_side_move_as_they_would_alone(store):
    both = fit(store, n_init=2)
    assert both.objectives[0] == pytest.approx(fit(store).objectives[0], rel=1e-12)


def test_a_move_that_a_model_cannot_make_is_passed_over(store, monkeypatch):
    """A proposal may lie where no rows make sense: the fit goes on as if there were none."""
    monkeypatch.setattr(Mixture, "moves", lambda self, params, sample, rng: [("nowhere", _nowhere(params))])
    found, plain = fit(store), fit(store, moves=False)
    assert found.objective == pytest.approx(plain.objective, abs=1e-6)


def test_variational_starts_from_short_runs_too(rows):
    """The family's policy for empty components cannot be set, and trials left it alone only where it could."""
    model = VariationalMixture(NormalWishart(), 4, init_method="short_em")
    assert np.isfinite(model.init(Chunk(rows[:1_000]), np.random.default_rng(0)).weights).all()


def _nowhere(params: MixtureParams) -> MixtureParams:
    return replace(params, weights=np.full(4, np.nan))
