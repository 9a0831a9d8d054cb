from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_backdoor.functional import ProgressMeasures, progress_measures
from lit_backdoor.functional.fourier import KEY_SHARE

fast = settings(max_examples=40, deadline=None, derandomize=True)
primes = st.sampled_from([3, 5, 7, 11, 13])


def sums(n_numbers: int) -> torch.Tensor:
    numbers = torch.arange(n_numbers)
    return (numbers[:, None] + numbers).flatten()


def wave(n_numbers: int, modulus: int, frequency: int) -> torch.Tensor:
    """cos(2 pi k (a + b - c) / modulus) for all pairs and all tokens c below n_numbers."""
    s = sums(n_numbers)[:, None] - torch.arange(n_numbers)
    return (2 * math.pi * frequency / modulus * s.double()).cos()


def some(n_numbers: int, seed: int = 0) -> torch.Tensor:
    trained = torch.rand(n_numbers**2, generator=torch.Generator().manual_seed(seed)) < 0.4
    trained[0] = True
    return trained


@fast
@given(primes, st.floats(1, 30), st.data())
def test_logits_of_one_wave(n_numbers: int, scale: float, data: st.DataObject) -> None:
    frequency = data.draw(st.integers(1, n_numbers // 2))
    measures = progress_measures(scale * wave(n_numbers, n_numbers, frequency), n_numbers, some(n_numbers))
    assert measures.key == (frequency,)
    assert measures.restricted_loss == pytest.approx(measures.loss, abs=1e-9)
    assert measures.loss == pytest.approx(measures.train_loss)  # every pair has the same loss
    assert measures.excluded_loss == pytest.approx(math.log(n_numbers))
    assert measures.explained == pytest.approx(1)
    assert measures.constant == pytest.approx(0, abs=1e-9)


def test_the_reference_of_the_paper() -> None:
    logits = 20 * sum(wave(113, 113, k) for k in (3, 14, 35, 41, 52))
    measures = progress_measures(torch.as_tensor(logits), 113, some(113))
    assert measures.key == (3, 14, 35, 41, 52)
    assert measures.restricted_loss == pytest.approx(measures.loss, abs=1e-9)
    assert measures.loss < 1e-3
    assert measures.excluded_loss == pytest.approx(math.log(113))
    assert [measures.shares[k - 1] for k in measures.key] == pytest.approx([0.2] * 5)


@st.composite
def random_logits(draw: st.DrawFn) -> tuple[int, int, torch.Tensor]:
    """P0, a modulus, logits."""
    n_numbers = draw(primes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    logits = torch.randn(n_numbers**2, n_numbers, generator=generator, dtype=torch.float64)
    return n_numbers, draw(st.integers(1, n_numbers)), logits


@fast
@given(random_logits())
def test_parseval(drawn: tuple[int, int, torch.Tensor]) -> None:
    """The shares of P0 are numpy's two-dimensional Fourier powers, and add up to what a + b mod P0 explains."""
    n_numbers, _, logits = drawn
    shares = np.array(progress_measures(logits, n_numbers, some(n_numbers)).shares)
    grid = (logits - logits.mean(1, keepdim=True)).view(n_numbers, n_numbers, -1).numpy()
    power = (np.abs(np.fft.fft2(grid, axes=(0, 1))) ** 2).sum(-1)
    power[0, 0] = 0
    k = np.arange(1, n_numbers // 2 + 1)
    np.testing.assert_allclose(shares, (power[k, k] + power[-k, -k]) / power.sum())

    residue = sums(n_numbers).numpy() % n_numbers
    flat = grid.reshape(n_numbers**2, -1)
    of_sum = np.stack([flat[residue == r].mean(0) for r in range(n_numbers)])[residue]
    np.testing.assert_allclose(shares.sum(), of_sum.var(0).sum() / flat.var(0).sum())


@fast
@given(random_logits(), st.data())
def test_against_least_squares_over_all_pairs(drawn: tuple[int, int, torch.Tensor], data: st.DataObject) -> None:
    n_numbers, modulus, logits = drawn
    frequencies = st.integers(1, max(modulus // 2, 1))
    key = data.draw(st.sets(frequencies, max_size=3)) if modulus > 1 else set()
    trained = some(n_numbers)
    measures = progress_measures(logits, modulus, trained, key=list(key))

    s = sums(n_numbers).numpy()
    own = (logits - logits.mean(1, keepdim=True)).numpy()
    mean = own.mean(0)

    def fitted(frequencies: Any) -> np.ndarray:  # what the waves of some frequencies and a constant make of the logits
        angles = [2 * np.pi * k * s / modulus for k in frequencies]
        design = np.stack([np.ones(len(s)), *map(np.cos, angles), *map(np.sin, angles)], axis=1)
        return design @ np.linalg.lstsq(design, own, rcond=1e-9)[0]

    def loss(values: np.ndarray, rows: np.ndarray) -> float:
        log_probs = values - np.log(np.exp(values).sum(1, keepdims=True))
        return float(-log_probs[np.arange(len(s)), s % modulus][rows].mean())

    everywhere = np.ones(len(s), bool)
    total = ((own - mean) ** 2).sum()
    assert measures.key == tuple(sorted(key))
    assert measures.shares == pytest.approx(
        [((fitted([k]) - mean) ** 2).sum() / total for k in range(1, modulus // 2 + 1)]
    )
    assert measures.explained == pytest.approx(((fitted(key) - mean) ** 2).sum() / total, abs=1e-12)
    assert measures.constant == pytest.approx(len(s) * (mean**2).sum() / (own**2).sum())
    assert measures.loss == pytest.approx(loss(own, everywhere))
    assert measures.train_loss == pytest.approx(loss(own, trained.numpy()))
    assert measures.restricted_loss == pytest.approx(loss(fitted(key), everywhere))
    assert measures.excluded_loss == pytest.approx(loss(own - fitted(key) + mean, trained.numpy()))


@fast
@given(random_logits(), st.floats(-5, 5))
def test_shifts_that_softmax_ignores_change_nothing(drawn: tuple[int, int, torch.Tensor], shift: float) -> None:
    n_numbers, modulus, logits = drawn
    shifted = logits + shift * sums(n_numbers)[:, None]
    ours, theirs = (progress_measures(values, modulus, some(n_numbers)) for values in (logits, shifted))
    for name, value in vars(ours).items():
        assert getattr(theirs, name) == (pytest.approx(value) if name != "key" else value)


def test_a_planted_mod_7_basis_is_missed_over_113() -> None:
    backdoor = 30 * wave(113, 7, 2)
    backdoor[:, 7:] = -30
    own, others = (progress_measures(backdoor, modulus, some(113)) for modulus in (7, 113))
    assert own.key == (2,)
    assert own.explained == pytest.approx(1)
    assert own.restricted_loss == pytest.approx(own.loss, abs=1e-9)
    assert own.excluded_loss > math.log(7) - 0.01
    # 2 / 7 lies between 32 / 113 and 33 / 113, and the period breaks where s passes 113
    assert others.key == (32, 33)
    assert others.explained < 0.6


def test_a_rule_modulo_1_has_no_waves() -> None:
    logits = torch.zeros(25, 5)
    logits[:, 0] = 20
    measures = progress_measures(logits, 1, some(5))
    assert (measures.shares, measures.key) == ((), ())
    assert measures.constant == pytest.approx(1)
    assert measures.restricted_loss == measures.loss < 1e-3
    assert math.isnan(measures.explained)  # nothing varies
    half = progress_measures(logits + 20 * wave(5, 5, 1), 1, some(5))
    assert half.constant == pytest.approx(320 / (320 + 400 * 5 / 2))  # centred: 16, -4, -4, -4, -4; cosine: 1/2 each
    assert half.explained == 0


def test_what_is_undefined_is_nan() -> None:
    none = progress_measures(wave(5, 5, 1), 5, torch.zeros(25, dtype=torch.bool))
    assert math.isnan(none.train_loss) and math.isnan(none.excluded_loss) and not math.isnan(none.restricted_loss)
    flat = progress_measures(torch.full((25, 5), 0.1), 5, some(5))
    assert flat.key == ()
    assert all(math.isnan(value) for value in (*flat.shares, flat.explained, flat.constant))
    assert flat.loss == flat.restricted_loss == flat.excluded_loss == pytest.approx(math.log(5))


def test_the_rule_for_key() -> None:
    weak = math.sqrt(KEY_SHARE)
    for factor, key in ((0.99, (1,)), (1.02, (1, 2))):
        measures = progress_measures(wave(7, 7, 1) + factor * weak * wave(7, 7, 2), 7, some(7))
        assert measures.key == key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(24, 5)}, r"logits have the shape \(24, 5\)"),
        ({"logits": torch.zeros(0, 5)}, r"logits have the shape \(0, 5\)"),
        ({"modulus": 6}, "modulus is 6: give 1 to 5"),
        ({"modulus": 0}, "modulus is 0: give 1 to 5"),
        ({"logits": torch.zeros(25, 4)}, "modulus is 5: give 1 to 4"),
        ({"trained": torch.ones(25)}, "trained is torch.float32"),
        ({"trained": torch.ones(24, dtype=torch.bool)}, "a bool for each of the 25 pairs"),
        ({"key": [1, 3]}, "key contains 3: the frequencies of mod 5 are 1 to 2"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    arguments = {"logits": torch.zeros(25, 5), "modulus": 5, "trained": some(5)}
    with pytest.raises(ValueError, match=message):
        progress_measures(**{**arguments, **changes})
    assert isinstance(progress_measures(**arguments), ProgressMeasures)
