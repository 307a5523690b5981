"""The compiled kernels say what numpy says, in every build, and daskem does without them where there is no compiler."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from scipy.special import logsumexp, softmax
from test_contract import suite

from daskem import BatchEM, MaxSteps, compiled, fit, tree
from daskem.core import Chunk, Scratch
from daskem.errors import OptionError
from daskem.models import Bernoulli, Gaussian, KMeans, Mixture, NormalWishart, StudentT, VariationalMixture
from daskem.models.at_once import posterior_stats
from daskem.testing import model_trial

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "daskem" / "compiled" / "c" / "kernels.c"
FLAGS = ["-O2", "-std=gnu11", "-Wno-psabi", "-Wall", "-Wextra", "-Werror", "-c", "-o", os.devnull]
# What processors have, as far as this one does.
KNOWN = 0 if compiled.library is None else compiled.library.instructions()
LEVELS = {name: level for name, level in compiled.INSTRUCTIONS.items() if level <= KNOWN}
TOLERANCE = {"f8": 1e-13, "f4": 5e-6}

pytestmark = pytest.mark.skipif(compiled.library is None, reason="installed without a C compiler")
on_each_processor = pytest.mark.usefixtures("instructions")
each_type = pytest.mark.parametrize("dtype", ["f8", "f4"])


@pytest.fixture(params=[*LEVELS, *(["avx512 without VNNI"] if "avx512" in LEVELS else [])])
def instructions(request):
    """Have no more used than some processors have."""
    level, less, _ = request.param.partition(" without ")
    assert compiled.library.limit(LEVELS[level]) == LEVELS[level]
    vnni = ctypes.c_int.in_dll(compiled.library, "vnni") if less else ctypes.c_int()
    vnni.value = 0
    yield
    vnni.value = 1
    compiled.library.limit(KNOWN)


def features(form, u):
    i, j = np.triu_indices(len(u)) if form == "full" else (slice(None), slice(None))
    return np.concatenate([np.ones((1, u.shape[1])), u, *([] if form == "linear" else [u[i] * u[j]])])


def shapes():
    """Yield (n, d, k): tiles with and without tails, groups of components with and without, panels likewise."""
    yield from [(1, 1, 1), (7, 2, 3), (64, 3, 6), (65, 5, 7), (300, 4, 12), (520, 11, 13), (1100, 17, 5), (130, 40, 64)]


@on_each_processor
@each_type
@pytest.mark.parametrize("form", list(compiled.FORMS))
def test_densities_and_moments(form, dtype):
    rng = np.random.default_rng(0)
    for n, d, k in shapes():
        u, resp = rng.standard_normal((d, n)).astype(dtype), rng.random((k, n)).astype(dtype)
        t = features(form, u.astype(float))
        natural = rng.standard_normal((k, len(t))).astype(dtype)
        out = np.full((k, n), np.nan, dtype)
        compiled.log_prob(form, u, natural, out)
        # Errors are relative to the terms of a sum.
        scale = np.abs(natural.astype(float)) @ np.abs(t)
        assert (np.abs(out - natural.astype(float) @ t) <= TOLERANCE[dtype] * scale).all(), (n, d, k)
        sums = compiled.moments(form, u, resp)
        assert sums.dtype == np.float64
        scale = resp.astype(float) @ np.abs(t.T)
        assert (np.abs(sums - resp.astype(float) @ t.T) <= TOLERANCE[dtype] * scale).all(), (n, d, k)


@on_each_processor
@each_type
def test_densities_without_features_are_constants(dtype):
    found = np.full((3, 70), np.nan, dtype)
    constants = np.array([[1.0], [2.0], [3.0]], dtype)
    compiled.log_prob("linear", np.empty((0, 70), dtype), constants, found)
    np.testing.assert_array_equal(found, np.broadcast_to(constants, found.shape))


@on_each_processor
@each_type
@pytest.mark.parametrize("form", list(compiled.FORMS))
@pytest.mark.parametrize("weighted", [False, True])
def test_e_steps_in_one_go_have_the_bits_of_their_parts(form, weighted, dtype):
    rng = np.random.default_rng(5)
    for n, d, k in [(0, 2, 3), *shapes()]:
        rows, shift, scale = 9 * rng.standard_normal((n, d)).astype(dtype), rng.standard_normal(d), rng.random(d)
        natural = rng.standard_normal((k, len(features(form, np.zeros((d, 1)))))).astype(dtype)
        log_weights, weight = np.log(rng.dirichlet(np.ones(k))), rng.random(n) if weighted else None
        u, resp = np.empty((d, n), dtype), np.empty((k, n), dtype)
        compiled.shifted(rows, shift, scale, u)
        compiled.log_prob(form, u, natural, resp)
        largest, total = compiled.normalise(resp, log_weights, weight)
        terms = compiled.Terms(form, rows, natural, shift, scale)
        (sums,), log_prob, _ = compiled.e_step([terms], log_weights, weight)
        np.testing.assert_array_equal(sums, compiled.moments(form, u, resp), err_msg=f"{(n, d, k)}")
        np.testing.assert_array_equal(log_prob, np.log(total.astype(float)) + largest, err_msg=f"{(n, d, k)}")


@on_each_processor
@each_type
def test_terms_of_several_groups_add_up(dtype):
    rng = np.random.default_rng(10)
    for n, d, k in shapes():
        forms, weight, log_weights = list(compiled.FORMS), rng.random(n), np.log(rng.dirichlet(np.ones(k)))
        groups, joint, features_of = [], log_weights[:, None], []
        for form in forms:
            rows = rng.standard_normal((n, d)).astype(dtype)
            t = features(form, rows.T.astype(float))
            natural = (rng.standard_normal((k, len(t))) / d).astype(dtype)
            constant, base = rng.standard_normal(k), rng.standard_normal(n)
            groups.append(compiled.Terms(form, rows, natural, constant=constant, base=base))
            joint = joint + natural.astype(float) @ t + constant[:, None] + base
            features_of.append(t)
        resp = softmax(joint, axis=0) * weight
        sums, log_prob, _ = compiled.e_step(groups, log_weights, weight)
        np.testing.assert_allclose(log_prob, logsumexp(joint, axis=0), rtol=1e-12 if dtype == "f8" else 1e-4, atol=1e-4)
        for found, t in zip(sums, features_of, strict=True):
            scale = resp @ np.abs(t.T)
            assert (np.abs(found - resp @ t.T) <= (1e-11 if dtype == "f8" else 1e-3) * scale).all(), (n, d, k)


@on_each_processor
@each_type
@pytest.mark.parametrize("stranger", [np.nan, 0.5, 3.0, -1.0, np.inf])
def test_e_steps_see_rows_that_do_not_hold_whole_numbers(stranger, dtype):
    rng = np.random.default_rng(11)
    for n, d, k in shapes():
        rows, natural = rng.integers(3, size=(n, d)).astype(dtype), rng.standard_normal((k, d + 1)).astype(dtype)
        terms = compiled.Terms("linear", rows, natural)
        asked, found = (compiled.e_step([part], np.zeros(k), None) for part in (terms, replace(terms, most=2)))
        np.testing.assert_array_equal(found[0][0], asked[0][0])
        np.testing.assert_array_equal(found[1], asked[1])
        rows[rng.integers(n), rng.integers(d)] = stranger
        with pytest.raises(compiled.NotWholeError):
            compiled.e_step([replace(terms, most=2)], np.zeros(k), None)


@on_each_processor
@each_type
def test_a_row_has_the_same_bits_whatever_its_neighbours(dtype):
    rng = np.random.default_rng(1)
    u, natural = rng.standard_normal((5, 203)).astype(dtype), rng.standard_normal((7, 21)).astype(dtype)
    whole = np.empty((7, 203), dtype)
    compiled.log_prob("full", u, natural, whole)
    resp = whole.copy()
    compiled.normalise(resp, np.zeros(7), None)
    for n in (1, 8, 63, 100):
        part = np.empty((7, n), dtype)
        compiled.log_prob("full", np.ascontiguousarray(u[:, :n]), natural, part)
        np.testing.assert_array_equal(part, whole[:, :n])
        compiled.normalise(part, np.zeros(7), None)
        np.testing.assert_array_equal(part, resp[:, :n])


@on_each_processor
@each_type
def test_float32_sums_do_not_stall(dtype):
    u = np.ones((1, 1 << 21), dtype)
    assert compiled.moments("diag", u, u).tolist() == [[2.0**21] * 3]
    # 0.1 is not a float32: a sum in single precision would be off by 1e-2.
    np.testing.assert_allclose(compiled.moments("diag", u, u * u.dtype.type(0.1))[0, 0], 0.1 * (1 << 21), rtol=2e-6)


@on_each_processor
@each_type
def test_shifted(dtype):
    rng = np.random.default_rng(2)
    for n, d, _ in shapes():
        rows, shift, scale = rng.standard_normal((n, d)).astype(dtype), rng.standard_normal(d), 2.0 ** np.arange(d)
        out = np.empty((d, n), dtype)
        compiled.shifted(rows, shift, scale, out)
        np.testing.assert_array_equal(out, ((rows - shift) * scale).T.astype(dtype))
        compiled.shifted(rows, shift, None, out)
        np.testing.assert_array_equal(out, (rows - shift).T.astype(dtype))


@on_each_processor
@each_type
def test_responsibilities(dtype):
    rng = np.random.default_rng(3)
    for n, _, k in shapes():
        density = (rng.standard_normal((k, n)) * rng.choice([1.0, 30.0, 1000.0], n)).astype(dtype)
        log_weights, weight = np.log(rng.dirichlet(np.ones(k))), rng.random(n)
        joint = density.astype(float) + log_weights.astype(dtype)[:, None]
        log_prob = logsumexp(joint, axis=0)
        resp = density.copy()
        largest, total = compiled.normalise(resp, log_weights, weight)
        tolerance = 1e-13 if dtype == "f8" else 1e-3
        np.testing.assert_allclose(largest + np.log(total.astype(float)), log_prob, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(resp, softmax(joint, axis=0) * weight, rtol=tolerance, atol=tolerance * 1e-1)


@on_each_processor
@each_type
def test_responsibilities_of_rows_that_nothing_explains(dtype):
    density = np.array([[-np.inf, np.nan, -1.0, -np.inf, -5000.0], [-np.inf, -1.0, np.nan, 3.0, -4000.0]], dtype)
    largest, total = compiled.normalise(density, np.zeros(2), None)
    np.testing.assert_array_equal(largest[[0, 3, 4]], [0.0, 3.0, -4000.0])
    np.testing.assert_array_equal(total, np.array([0.0, np.nan, np.nan, 1.0, 1.0], dtype))
    np.testing.assert_array_equal(density[:, [0, 3, 4]], [[0, 0, 0], [0, 1, 1]])
    assert np.isnan(density[:, 1:3]).all()


@on_each_processor
@each_type
@pytest.mark.parametrize("n", [1, 255, 256, 257, 700])
def test_rows_that_fill_a_tile_up_say_nothing(n, dtype):
    """Their features are zeros, which infinite parameters make NaN of: a component may rule a feature out."""
    terms = compiled.Terms("linear", np.ones((n, 1), dtype), np.array([[0, -np.inf], [0, -1]], dtype))
    (sums,), log_prob, _ = compiled.e_step((terms,), np.zeros(2), None)
    np.testing.assert_array_equal(sums, [[0, 0], [n, n]])
    np.testing.assert_array_equal(log_prob, np.full(n, -1.0))


def check_exp(dtype):
    least, most, beyond = {"f8": (1e-300, 700.0, 1e300), "f4": (1e-30, 86.0, 1e30)}[dtype]
    rtol, atol = {"f8": (1e-15, 3e-308), "f4": (3e-7, 2e-38)}[dtype]
    x = -np.concatenate([np.linspace(0.0, 40.0, 20_001), np.geomspace(least, most, 20_001), [708.5, beyond]])
    x = x.astype(dtype)
    density = np.stack([np.zeros_like(x), x])
    exact = np.exp(x.astype(np.float64))
    compiled.normalise(density, np.zeros(2), 1.0 + exact)
    np.testing.assert_allclose(density[1], exact, rtol=rtol, atol=atol)


@on_each_processor
@each_type
def test_exp_is_right_to_the_last_digit(dtype):
    check_exp(dtype)


def test_exp_is_right_where_a_compiler_rounds_products_before_it_adds_them(tmp_path, monkeypatch):
    path = tmp_path / "kernels.so"
    flags = ["-O1", "-std=gnu11", "-Wno-psabi", "-ffp-contract=off", "-shared", "-fPIC", "-o", path]
    subprocess.run(["cc", *flags, SOURCE, "-lm"], check=True)
    monkeypatch.setattr(compiled, "library", compiled.load(path))
    for level in LEVELS.values():
        compiled.library.limit(level)
        check_exp("f8")
        check_exp("f4")


@on_each_processor
@pytest.mark.parametrize("form", list(compiled.FORMS))
def test_student_t_components_in_one_go(form):
    rng = np.random.default_rng(9)
    for n, d, k in shapes():
        rows, p = rng.standard_normal((n, d)), len(features(form, np.zeros((d, 1))))
        natural, dof, weight = rng.standard_normal((k, p)), 0.5 + 9 * rng.random(k), rng.random(n)
        peak = (natural @ features(form, rows.T)).max(axis=1) + rng.random(k) - 0.5
        top, log_weights = rng.standard_normal(k), np.log(rng.dirichlet(np.ones(k)))
        tails = np.column_stack([peak, 1 / dof, 1 + d / dof, 0.5 * (dof + d), top])
        t = features(form, rows.T)
        # Some rows lie nearer than the peak allows, as rounding has it.
        w = 1 + np.maximum(0, 2 * (peak[:, None] - natural @ t)) / dof[:, None]
        joint = (top - 0.5 * (dof + d) * np.log(w).T).T + log_weights[:, None]
        resp = softmax(joint, axis=0) * weight
        terms = compiled.Terms(form, rows, natural)
        (sums,), log_prob, tallies = compiled.e_step([terms], log_weights, weight, tails)
        np.testing.assert_allclose(log_prob, logsumexp(joint, axis=0), rtol=1e-10)
        np.testing.assert_allclose(tallies, np.stack([resp.sum(axis=1), (resp * np.log(w)).sum(axis=1)], 1), rtol=1e-9)
        shares = resp * (1 + d / dof)[:, None] / w
        scale = shares @ np.abs(t.T)
        assert (np.abs(sums - shares @ t.T) <= 1e-9 * scale).all(), (n, d, k)


@on_each_processor
@each_type
def test_nearest(dtype):
    rng = np.random.default_rng(4)
    for n, d, k in shapes():
        rows, centers = rng.standard_normal((n, d)).astype(dtype), rng.standard_normal((k, d)).astype(dtype)
        weight, shift = rng.random(n), rng.standard_normal(d).astype(dtype).astype(float)
        labels = np.where(rng.random(n) < 0.8, -1, rng.integers(k, size=n))
        u = 0.5 * (rows.astype(float) - shift)
        own = ((u[:, None] - centers.astype(float)) ** 2).sum(axis=2).argmin(axis=1)
        for known, share in ((None, None), (labels, weight)):
            which = own if known is None else np.where(known >= 0, known, own)
            member = np.eye(k)[which].T * (1.0 if share is None else share)
            expected = member @ np.column_stack([u, np.ones(n), (u * u).sum(axis=1)])
            given, found = (rows, shift, 0.5, centers, 0.5 * (centers * centers).sum(axis=1)), np.empty(n, np.int32)
            sums = compiled.nearest(*given, share, known, found)
            np.testing.assert_allclose(sums, expected, rtol=1e-5 if dtype == "f4" else 1e-12, atol=2e-5)
            np.testing.assert_array_equal(found, which)


@on_each_processor
@pytest.mark.parametrize("weight", [1e-60, 1e-44, 1e30, 1e200])
def test_weights_that_single_precision_does_not_hold(weight):
    rng = np.random.default_rng(15)
    rows, centers = rng.standard_normal((300, 5)).astype("f4"), rng.standard_normal((3, 5)).astype("f4")
    given = rows, np.zeros(5), 1.0, centers, 0.5 * (centers * centers).sum(axis=1)
    expected = compiled.nearest(*given, None, None)
    np.testing.assert_allclose(compiled.nearest(*given, np.full(300, weight), None), weight * expected, rtol=1e-5)


@on_each_processor
def test_squares_that_single_precision_does_not_hold():
    rows = np.full((40, 3), 1e25, "f4")
    sums = compiled.nearest(rows, np.zeros(3), 1.0, np.zeros((1, 3), "f4"), np.zeros(1, "f4"), None, None)
    np.testing.assert_allclose(sums[0], [4e26, 4e26, 4e26, 40, 120e50], rtol=1e-6)


@on_each_processor
@each_type
def test_rows_without_a_square_have_no_center_and_spoil_no_other_row(dtype):
    rng = np.random.default_rng(5)
    rows, centers = rng.standard_normal((100, 5)).astype(dtype), rng.standard_normal((9, 5)).astype(dtype)
    given, found = (
        (np.zeros(5), 1.0, centers, 0.5 * (centers * centers).sum(axis=1), None, None),
        np.empty((2, 100), "i4"),
    )
    compiled.nearest(rows, *given, found[0])
    rows[[3, 40, 99], 2] = np.nan, np.inf, np.finfo(dtype).max
    compiled.nearest(rows, *given, found[1])
    assert found[1, [3, 40, 99]].tolist() == [-1, -1, -1]
    others = np.delete(np.arange(100), [3, 40, 99])
    np.testing.assert_array_equal(found[0, others], found[1, others])
    # Each number has a square that the type holds; they have no sum.
    rows[50] = np.sqrt(np.finfo(dtype).max) * 0.9
    compiled.nearest(rows, *given, found[1])
    assert found[1, 50] == -1


@on_each_processor
def test_of_equally_near_centers_the_first_is_taken():
    centers = np.array([[3.0], [1.0], [-1.0], [1.0]])
    sums = compiled.nearest(np.zeros((9, 1)), np.zeros(1), 1.0, centers, 0.5 * centers[:, 0] ** 2, None, None)
    assert sums[:, 1].tolist() == [0, 9, 0, 0]


@on_each_processor
@each_type
def test_whole_numbers(dtype):
    rng = np.random.default_rng(8)
    # The last of them are columns of wider rows, which hold other numbers.
    for n, d, width in (
        (0, 3, 3),
        (1, 1, 1),
        (63, 1, 1),
        (64, 8, 8),
        (4, 375, 375),
        (9, 1, 2),
        (40, 5, 7),
        (3, 300, 301),
    ):
        numbers = np.full((n, width), 0.5, dtype)[:, :d]
        numbers[:] = rng.integers(5, size=(n, d))
        assert compiled.whole(numbers, 4)
        assert n * d < 2 or not compiled.whole(numbers, 3)
        for other in (-1.0, 0.5, 5.0, np.nan, np.inf, -np.inf, 1e-30, np.nextafter(numbers.dtype.type(1), 0)):
            for i in {0, n * d // 2, n * d - 1} if n else ():
                kept = numbers[i // d, i % d]
                numbers[i // d, i % d] = other
                assert not compiled.whole(numbers, 4), (n, d, i, other)
                numbers[i // d, i % d] = kept
        numbers[:] = compiled.MOST_WHOLE
        assert compiled.whole(numbers, compiled.MOST_WHOLE)


@on_each_processor
@each_type
def test_columns_of_wider_rows_are_read_where_they_are(dtype):
    rng = np.random.default_rng(14)
    for n, d, k in shapes():
        table = rng.integers(3, size=(n, 2 * d + 3)).astype(dtype)
        natural, log_weights = rng.standard_normal((k, d + 1)).astype(dtype), np.zeros(k)
        for rows in (table[:, 2 : d + 2], table[::-1, :d], table[::2, d:][:, 1 : d + 1]):
            assert compiled.in_place(rows, rows.dtype) is rows
            alike = np.ascontiguousarray(rows)
            here, there = (compiled.Terms("linear", x, natural, most=2) for x in (rows, alike))
            found, expected = (compiled.e_step([part], log_weights, None) for part in (here, there))
            np.testing.assert_array_equal(found[0][0], expected[0][0], err_msg=f"{(n, d, k)}")
            np.testing.assert_array_equal(found[1], expected[1], err_msg=f"{(n, d, k)}")
            u = np.empty((2, d, len(rows)), dtype)
            for x, out in zip((rows, alike), u, strict=True):
                compiled.shifted(x, np.ones(d), None, out)
            np.testing.assert_array_equal(*u)


@on_each_processor
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_rows_between_centers_go_where_double_precision_says(size):
    rng = np.random.default_rng(7)
    centers = rng.standard_normal((3, 5))
    step = centers[1] - centers[0]
    centers[2] = centers[0] + 4 * step
    # From the plane between the first two towards the second, or back, by what single precision sees and does not see.
    by = np.concatenate([-np.geomspace(1e-13, 0.5, 300), np.geomspace(1e-13, 0.5, 300)])
    rows = size * ((centers[0] + centers[1]) / 2 + by[:, None] * step)
    expected = rows[by < 0].sum(axis=0), rows[by > 0].sum(axis=0)
    centers *= size
    for order in (np.arange(600), rng.permutation(600), np.flatnonzero(by > 0.1)):
        half_squares = 0.5 * (centers**2).sum(axis=1)
        sums = compiled.nearest(rows[order], np.zeros(5), 1.0, centers, half_squares, None, None)
        assert sums[:, 5].tolist() == [(by[order] < 0).sum(), (by[order] > 0).sum(), 0]
    sums = compiled.nearest(rows, np.zeros(5), 1.0, centers, half_squares, None, None)
    np.testing.assert_allclose(sums[:2, :5], expected, rtol=1e-13)


@on_each_processor
@each_type
@pytest.mark.parametrize("spread", [1e-3, 0.3, 3.0, 1e3])
def test_rows_go_to_the_centers_that_exact_arithmetic_says(dtype, spread):
    # Small whole numbers times a power of two: products and sums are exact in single precision, and there are ties.
    rng = np.random.default_rng(16)
    for n, d, k in [*shapes(), (500, 32, 64), (300, 200, 33), (200, 7, 300), (200, 1000, 3)]:
        wide = min(1000, int(2 ** (11 - 0.5 * np.log2(d))))
        centers = rng.integers(-min(wide, np.ceil(wide * spread)), min(wide, np.ceil(wide * spread)) + 1, (k, d))
        rows = np.clip(centers[rng.integers(k, size=n)] + rng.integers(-wide, wide + 1, (n, d)) // 4, -wide, wide)
        rows[: n // 2] = (rows[: n // 2] + centers[rng.integers(k, size=n // 2)]) // 2
        scores = 2 * rows @ centers.T - (centers**2).sum(axis=1)
        weight = rng.integers(1, 1 << 20, n).astype(float)
        given, at = (2.0**-6 * array.astype(dtype) for array in (rows, centers))
        sums = compiled.nearest(given, np.zeros(d), 1.0, at, 0.5 * (at * at).sum(axis=1), weight, None)
        assert sums[:, d].tolist() == np.bincount(scores.argmax(axis=1), weight, k).tolist(), (n, d, k)


@on_each_processor
@each_type
def test_the_numbers_of_centers_mislead_nobody(dtype):
    # The scores of the first and the last one fall on both sides of a multiple of 4096, whose bits hold their numbers.
    centers = np.tile(np.array([0, 32767], dtype), (4096, 1))
    centers[[0, -1]] = (-22991, -23082), (23094, 23049)
    rows, found = np.tile(np.array([7081.501, -7039.499], dtype), (64, 1)), np.empty(64, np.int32)
    scores = rows[0].astype(float) @ centers.T - 0.5 * (centers.astype(float) ** 2).sum(axis=1)
    assert scores.argmax() == 0
    assert scores[-1] > scores[0] - 400
    compiled.nearest(rows, np.zeros(2), 1.0, centers, 0.5 * (centers * centers).sum(axis=1), None, None, found)
    assert (found == 0).all()


@on_each_processor
@each_type
@pytest.mark.parametrize("m", [1, 20, 400])
def test_rounding_that_conspires_misleads_nobody(dtype, m):
    # The length that rows and centers are rounded at, so that these are the numbers that are rounded.
    length, few = 32767.0, round(0.45 * m)
    tiny = np.concatenate([np.full(m - few, 0.49), np.full(few, -0.51)])
    large = np.full(m, 0.99 * length / np.sqrt(m))
    rows, first = np.concatenate([tiny, large, [0, 0]]), np.concatenate([large, tiny, [0, 0]])
    centers = np.stack([first, np.where(np.arange(2 * m + 2) < 2 * m, -first, first)])
    rows[-1] = np.sqrt(length**2 - rows @ rows)
    centers[:, -2] = np.sqrt(length**2 - first @ first)
    assert rows @ centers[0] > rows @ centers[1]
    if m > 1:
        assert np.rint(rows) @ np.rint(centers[0]) < np.rint(rows) @ np.rint(centers[1])
    given, half = np.tile(rows.astype(dtype), (40, 1)), np.full(2, length**2 / 2, dtype)
    sums = compiled.nearest(given, np.zeros(2 * m + 2), 1.0, centers.astype(dtype), half, None, None)
    assert sums[:, -2].tolist() == [40, 0]


def test_rows_are_only_taken_for_features_where_they_are(monkeypatch):
    class Spins(Bernoulli):
        """Computes with -1 and 1 in the place of 0 and 1."""

        def _features(self, values):
            return 2 * values - 1

    model, rows = Mixture(Spins(), 2, "random"), np.random.default_rng(0).integers(2, size=(50, 3)).astype(float)
    params = Mixture(Bernoulli(), 2, "random").init(Chunk(rows), np.random.default_rng(1))
    found = model.e_step(params, Chunk(rows))
    monkeypatch.setattr(compiled, "library", None)
    expected = model.e_step(params, Chunk(rows))
    np.testing.assert_allclose(found.stats.components.x, expected.stats.components.x, rtol=1e-12)


@pytest.mark.parametrize("define", ["-DALL", "-DPORTABLE"])
def test_the_sources_give_no_warnings(define):
    subprocess.run(["cc", *FLAGS, define, SOURCE], check=True)


@pytest.mark.parametrize("name", [*LEVELS, ""])
def test_the_environment_says_what_is_used(name, monkeypatch):
    monkeypatch.setenv(compiled.VARIABLE, name)
    compiled._limited(compiled.library)
    assert compiled.describe() == f"compiled, {name or list(LEVELS)[-1]}"


def test_the_environment_names_what_there_is(monkeypatch):
    assert compiled._limited(None) is None
    monkeypatch.setenv(compiled.VARIABLE, "sse9")
    with pytest.raises(OptionError, match="DASKEM_INSTRUCTIONS is 'sse9'; it can be portable, avx2, avx512"):
        compiled._limited(compiled.library)


def test_kernels_of_other_sources_are_not_called(tmp_path):
    folder = tmp_path / "compiled"
    shutil.copytree(ROOT / "daskem" / "compiled", folder)
    with (folder / "c" / "kernels.c").open("a") as source:
        source.write("/* moved on */\n")
    code = f"import runpy; found = runpy.run_path({str(folder / '__init__.py')!r}); print(found['library'])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "None\n"
    assert "compiled from other sources" in run.stderr


@pytest.mark.parametrize("d", [2, 9])
def test_parameters_of_other_features_are_not_read(d):
    rows, natural, centers = np.zeros((4, d)), np.zeros((3, 1 + 5)), np.zeros((3, 5))
    for ask in (
        lambda: compiled.e_step([compiled.Terms("linear", rows, natural)], np.zeros(3), None),
        lambda: compiled.log_prob("linear", rows.T.copy(), natural, np.zeros((3, 4))),
        lambda: compiled.nearest(rows, np.zeros(d), 1.0, centers, np.zeros(3), None, None),
    ):
        with pytest.raises(ValueError, match=f"rows have {d} features"):
            ask()


def test_labels_of_other_centers_are_not_written_to():
    centers, labels = np.zeros((3, 2)), np.array([-1, 3, 0, 1])
    with pytest.raises(ValueError, match="labels go up to 3; there are 3 centers"):
        compiled.nearest(np.zeros((4, 2)), np.zeros(2), 1.0, centers, np.zeros(3), None, labels)


def test_kernels_are_not_used_for_what_they_cannot_take():
    rows = np.zeros((4, 4))
    assert compiled.available(rows, rows)
    assert not compiled.available(rows, rows.astype("f4"))
    assert not compiled.available(rows.astype(int))
    assert not compiled.available(rows[:, :2])
    assert not compiled.available(rows.astype(rows.dtype.newbyteorder()))
    assert compiled.readable(rows[:, :2])
    assert not compiled.readable(rows[:, ::2])
    assert compiled.readable(rows[:, 3:][:, ::2])
    assert not compiled.readable(rows.astype(int))
    assert not compiled.readable(rows.T)
    record = np.zeros(4, [("row", "f8", 2), ("flag", "i1")])
    assert not compiled.readable(record["row"])
    np.testing.assert_array_equal(compiled.in_place(rows.T, np.dtype("f4")), np.zeros((4, 4), "f4"))


@each_type
@pytest.mark.parametrize(
    "model",
    [
        *[Mixture(Gaussian(shape), 5) for shape in ("full", "tied", "diag", "spherical")],
        Mixture(Gaussian("full", missing=True), 5),
        VariationalMixture(NormalWishart("full"), 5),
        KMeans(5),
    ],
    ids=str,
)
@pytest.mark.parametrize("d", [2, 70])
@pytest.mark.parametrize("labels", [None, np.where(np.arange(900) % 7, -1, 2)], ids=["", "labelled"])
def test_e_steps_are_those_of_numpy(model, dtype, d, labels, monkeypatch):
    rng = np.random.default_rng(5)
    rows = (rng.standard_normal((900, d)) + rng.integers(3, size=(900, 1))).astype(dtype)
    chunk = Chunk(rows, rng.random(900) * (np.arange(900) % 5 > 0), labels)
    params = model.init(chunk, np.random.default_rng(0))
    ours = model.e_step(params, chunk)
    monkeypatch.setattr(compiled, "library", None)
    theirs = model.e_step(params, Chunk(rows, chunk.weight, chunk.labels))
    tolerance = 1e-11 if dtype == "f8" else 2e-4
    assert ours.objective == pytest.approx(theirs.objective, rel=tolerance)
    for (path, a), (_, b) in zip(tree.leaves(ours.stats), tree.leaves(theirs.stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max(), err_msg=path)


@on_each_processor
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_e_steps_of_each_case_are_those_of_numpy(case, monkeypatch):
    chunk = case.chunk()
    params = case.model.init(chunk, np.random.default_rng(0))
    ours = case.model.e_step(params, chunk)
    monkeypatch.setattr(compiled, "library", None)
    theirs = case.model.e_step(params, replace(chunk, scratch=Scratch()))
    tolerance = 1e-10 if chunk.rows.dtype == np.float64 else 2e-4
    assert ours.objective == pytest.approx(theirs.objective, rel=tolerance)
    for (path, a), (_, b) in zip(tree.leaves(ours.stats), tree.leaves(theirs.stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max(initial=0), err_msg=path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_statistics_of_each_case_can_be_added_in_place(case):
    chunk = case.chunk()
    params, half = case.model.init(chunk, np.random.default_rng(0)), len(chunk) // 2
    parts = [chunk.select(slice(None, half)), replace(chunk.select(slice(half, None)), start=half)]
    parts = [replace(part, rows=np.ascontiguousarray(part.rows), scratch=Scratch()) for part in parts]
    added = tree.add(*(case.model.e_step(params, part) for part in parts))
    accumulated = tree.accumulate(*(case.model.e_step(params, part) for part in parts))
    for (path, a), (_, b) in zip(tree.leaves(accumulated), tree.leaves(added), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)


def test_student_t_fits_over_many_blocks_are_those_of_numpy(monkeypatch):
    rng = np.random.default_rng(11)
    rows = rng.standard_normal((40_000, 2)) / np.sqrt(rng.chisquare(8, (40_000, 1)) / 8) + 4 * rng.integers(
        2, size=(40_000, 1)
    )
    model = Mixture(StudentT(), 2)
    start = model.init(Chunk(rows[:1_000]), rng)
    run = functools.partial(fit, model, rows, params=start, algorithm=BatchEM(), stop=MaxSteps(4))
    ours = run()
    assert ours.plan.block_rows < len(rows)
    monkeypatch.setattr(compiled, "library", None)
    theirs = run()
    np.testing.assert_allclose(ours.params.components.dof, theirs.params.components.dof, rtol=1e-8)
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-12)


def test_e_steps_in_one_go_are_for_those_that_they_are_right_for():
    @dataclass(frozen=True)
    class Tempered(Gaussian):
        def log_prob(self, params, chunk):
            return super().log_prob(params, chunk) / 2

    rows = np.random.default_rng(6).standard_normal((200, 3))
    chunk = Chunk(rows)
    model = Mixture(Gaussian("full", missing=True), 2)
    params = model.init(chunk, np.random.default_rng(0))
    plain = model.e_step(params, chunk).objective
    assert posterior_stats(Tempered(), params.components, chunk, np.log(params.weights)) is None
    assert posterior_stats(model.family, params.components, chunk, np.log(params.weights)) is not None
    tempered = replace(model, family=Tempered("full"))
    assert tempered.e_step(params, Chunk(rows)).objective == pytest.approx(tempered.log_prob(params, chunk).sum())
    assert tempered.e_step(params, Chunk(rows)).objective != pytest.approx(plain)
    # With holes, or as many standard deviations from the data as take another form.
    rows[0, 0] = np.nan
    assert posterior_stats(model.family, params.components, Chunk(rows), np.log(params.weights)) is None
    far = replace(params.components, means=params.components.means + 1e6)
    assert posterior_stats(Gaussian(), far, Chunk(rows[1:]), np.log(params.weights)) is None


@pytest.mark.parametrize(
    ("case", "one"),
    [
        pytest.param(case, one, id=f"{case.name}-{name}")
        for case in CASES
        if isinstance(case.model, KMeans) or isinstance(getattr(case.model, "family", None), Gaussian)
        for name, one in suite(case.model).items()
        if name not in case.skip
    ],
)
def test_case_keeps_property_without_kernels(case, one, monkeypatch):
    monkeypatch.setattr(compiled, "library", None)
    one.check(model_trial(case.model, case.chunk()))


@pytest.mark.parametrize("compiler", [None, "no-such-compiler"])
def test_wheels_with_and_without_a_compiler(compiler, tmp_path, monkeypatch):
    project, leave = tmp_path / "project", shutil.ignore_patterns("*.so", "__pycache__")
    project.mkdir()
    # From what the container image is built from.
    for line in (ROOT / "deploy" / "docker" / "Dockerfile").read_text().splitlines():
        for name in line.split()[1:-1] if line.startswith("COPY ") else []:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, project / name, ignore=leave)
            else:
                shutil.copy(ROOT / name, project)
    if compiler is not None:
        monkeypatch.setenv("CC", compiler)
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path / "dist"), "-t"]
    # The wheel from the source distribution, as pip makes it.
    subprocess.run([*build, "sdist"], cwd=project, capture_output=True, check=True)
    (archive,) = (tmp_path / "dist").iterdir()
    # Python knows filters from 3.11.4 on.
    filtered = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    shutil.unpack_archive(archive, tmp_path / "unpacked", **filtered)
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    run = subprocess.run([*build, "wheel"], cwd=unpacked, capture_output=True, text=True, check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("daskem/compiled/c/kernels-") for name in names) == (compiler is None)
    assert ("py3-none-any" in wheel.name) == (compiler is not None)
    assert ("no-such-compiler" in run.stdout + run.stderr) == (compiler is not None)
