"""Schedule, one step, full loops and fixed channels against the parity numbers; the objective; the noise of volumes."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from parity import SHAPE, TAU, compare, filled_network, inputs, tensor, text_states
from torch import nn

from medsyn.diffusion.objective import LowResolution, denoising_loss, super_res_condition
from medsyn.diffusion.sampling import clipped, guided_denoiser, sample, with_fixed_channels, with_progress
from medsyn.diffusion.schedule import (
    add_noise,
    alpha_bar,
    alpha_bar_at,
    ancestral_coefficients,
    half_log_snr,
    time_of_half_log_snr,
)
from medsyn.diffusion.seeds import seeded, volume_noise
from medsyn.diffusion.solvers import DDIM, DPMPP_2M, UNIPC, ddim_step, ddim_times, dpmpp_2m_times, dpmpp_step

SMALL = (1, 4, 2, 2, 2)
ALPHAS = {
    -0.1: 0.9999,
    0: 0.9998445910,
    0.001: 0.9998033132,
    0.02: 0.9980973490,
    0.1: 0.9719416652,
    0.25: 0.8468805280,
    0.5: 0.4937668427,
    0.75: 0.1442496812,
    0.9: 0.0240879801,
    0.95: 0.0060587029,
    0.98: 0.0009710421,
    0.99: 0.0002428195,
    0.993: 0.0001189865,
    0.995: 0.0001,
    1: 0.0001,
}
# steps, guidance, fixed channels -> mean, standard deviation, first 8, of the result in [0, 1]
LOOPS = {
    (50, 1, ()): "0.760208 0.079749 0.714630 0.841803 0.837480 0.835467 0.834496 0.610104 0.703272 0.702963",
    (100, 1, ()): "0.774061 0.067421 0.737110 0.842747 0.839080 0.837334 0.836445 0.644954 0.726882 0.726391",
    (20, 1, ()): "0.727047 0.107561 0.657210 0.838363 0.833911 0.830627 0.829452 0.536295 0.645649 0.646157",
    (30, 1, ()): "0.744599 0.093039 0.688107 0.840314 0.835710 0.833196 0.832116 0.574010 0.676374 0.676409",
    (50, 2, ()): "0.838377 0.080630 0.808230 0.916653 0.909605 0.909409 0.909314 0.668310 0.788513 0.785927",
    (50, 3, ()): "0.908986 0.079317 0.897523 0.978154 0.971365 0.972060 0.972404 0.723991 0.871573 0.866643",
    (50, 1, (1,)): "0.647564 0.211377 0.685429 0.814016 0.818967 0.813376 0.802041 0.618676 0.718746 0.677605",
    (50, 1, (1, 2)): "0.587587 0.231232 0.694580 0.814721 0.811869 0.774645 0.782302 0.673521 0.719377 0.635734",
    (50, 1, (0,)): "0.693002 0.171275 0.888525 0.894264 0.378990 0.455011 0.215555 0.304352 0.399070 0.589134",
}


class Toy(nn.Module):
    """The toy denoiser of the full loops: with text the conditional, without the null prediction."""

    def forward(self, x, tau, text=None):
        mu = x.mean(dim=1, keepdim=True)
        wave = torch.cos(0.004 * tau)[:, None, None, None, None]
        if text is None:
            return torch.tanh(0.55 * x + 0.15 * mu + 0.2 * wave)
        return torch.tanh(0.6 * x + 0.2 * mu + 0.3 * wave)


def test_schedule():
    compare("alpha(t), 15 times", [alpha_bar_at(t) for t in ALPHAS], list(ALPHAS.values()), 1e-9)
    assert alpha_bar(torch.tensor([0.25, 0.9])).tolist() == pytest.approx([ALPHAS[0.25], ALPHAS[0.9]], abs=1e-6)


def test_one_step():
    x0, epsilon = tensor(SMALL, 200001), tensor(SMALL, 200002, math.sqrt(3))
    compare("one step: x0", x0.flatten()[:2].tolist(), [0.229883, -0.655339], 1e-6)
    compare("one step: epsilon", epsilon.flatten()[:2].tolist(), [-1.154023, -1.072247], 1e-6)
    x_t = add_noise(x0, epsilon, torch.tensor([0.5]))
    compare("one step: x_t", x_t.flatten()[:4].tolist(), [-0.659552, -1.223402, -0.636604, 0.758102], 1e-5)
    prediction = torch.tanh(0.6 * x_t + 0.3 * math.cos(2.0))
    expected = [-0.478144, -0.695683, -0.467453, 0.318536]
    compare("one step: prediction", prediction.flatten()[:4].tolist(), expected, 1e-5)
    x_s = ddim_step(x_t, prediction, 0.5, 0.48)
    expected = [0.036496, 0.840914, -0.659875, -1.215626, -0.637176, 0.748354, 1.484737, -0.827103, 0.399948, -1.035187]
    ours = [x_s.mean().item(), x_s.std(unbiased=False).item(), *x_s.flatten()[:8].tolist()]
    compare("one step: DDIM 0.5 to 0.48", ours, expected, 1e-5)
    c_x0, c_xt, variance = ancestral_coefficients(0.5, 0.48)
    mean = (c_x0 * prediction + c_xt * x_t).flatten()[:4].tolist()
    compare("one step: ancestral mean", mean, [-0.640927, -1.172610, -0.619132, 0.717067], 1e-5)
    compare("one step: ancestral variance", [variance], [0.0557007], 1e-7)


def test_ancestral_coefficients():
    """The reference numbers are single precision, where 1 - alpha(t) / alpha(s) cancels near t = 0."""
    middle, end = ancestral_coefficients(500 / 999, 499 / 999), ancestral_coefficients(1 / 999, 0.0)
    compare("ancestral coefficients 500 to 499", middle, (0.00437473, 0.99535012, 3.144336e-3), 1e-4, relative=True)
    compare("ancestral coefficients 1 to 0", end, (0.20968068, 0.79028678, 3.259717e-5), 3e-3, relative=True)


@pytest.mark.parametrize(("steps", "guidance", "fixed"), LOOPS)
def test_full_loop(steps, guidance, fixed):
    specified = [float(number) for number in LOOPS[steps, guidance, fixed].split()]
    noise, given = tensor(SMALL, 200003, math.sqrt(3)), tensor(SMALL, 200004)
    denoiser = guided_denoiser(Toy(), text=torch.zeros(1), guidance_scale=float(guidance))
    result = (sample(DDIM, denoiser, noise, steps, fixed=given, fixed_channels=fixed) + 1) / 2
    ours = [result.mean().item(), result.std(unbiased=False).item(), *result.flatten()[:8].tolist()]
    compare(f"loop: {steps} steps, guidance {guidance}, fixed {list(fixed)}", ours, specified, 1e-4)
    assert torch.equal(result[:, list(fixed)], (given[:, list(fixed)] + 1) / 2)


def test_number_of_calls():
    assert [len(ddim_times(steps)) for steps in (50, 20, 100, 30, 1)] == [51, 21, 101, 31, 2]
    assert ddim_times(30)[0] == 990 and ddim_times(30)[-1] == 0
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="num_steps"):
            ddim_times(steps)


class Gaussian:
    """Data N(mean, std^2) in every voxel: the posterior mean, and the exact end of the probability-flow ODE."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def __call__(self, x, tau):
        alpha = alpha_bar_at(tau / 1000)
        gain = math.sqrt(alpha) * self.std**2 / (alpha * self.std**2 + 1 - alpha)
        return self.mean + gain * (x - math.sqrt(alpha) * self.mean)

    def exact(self, noise):
        """The flow keeps the standardised value, so x at t = 0 is known; the solvers return its posterior mean."""
        (start, end) = (alpha_bar_at(t) for t in (1.0, 0.0))
        spread = [math.sqrt(alpha * self.std**2 + 1 - alpha) for alpha in (start, end)]
        x = math.sqrt(end) * self.mean + spread[1] / spread[0] * (noise - math.sqrt(start) * self.mean)
        return self(x, 0.0)


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.2), (0.3, 0.05), (-0.5, 0.1)])
def test_second_order_solver_on_gaussian_data(mean, std):
    """Against the exact solution: far below DDIM at 10 steps, and an error that falls with the square of the steps."""
    gaussian = Gaussian(mean, std)
    noise = tensor((1, 1, 8, 8, 8), 7, math.sqrt(3)).double()
    exact = gaussian.exact(noise)

    def error(solver, steps):
        return (sample(solver, gaussian, noise, steps) - exact).square().mean().sqrt().item()

    assert error(DPMPP_2M, 10) < 0.2 * error(DDIM, 10)
    assert error(DPMPP_2M, 1000) < 1e-5
    assert 3 < error(DPMPP_2M, 100) / error(DPMPP_2M, 200) < 5
    assert error(DDIM, 1000) < 2e-3


def test_the_corrector_adds_an_order_without_a_call():
    """The data are two points, so the prediction is a curved function of x; the reference has 50 times the steps."""
    noise = tensor((1, 1, 8, 8, 8), 7, math.sqrt(3)).double()
    calls = []

    def two_points(x, tau):
        calls.append(tau)
        alpha = alpha_bar_at(tau / 1000)
        return 0.5 * torch.tanh(0.5 * math.sqrt(alpha) / (1 - alpha) * x)  # the points are -0.5 and 0.5

    def states(solver, steps):
        """Volumes at t = 0.6, where the prediction still changes with x."""
        start, end = half_log_snr(1.0), half_log_snr(0.6)
        inner = [1000 * time_of_half_log_snr(start + (end - start) * i / steps) for i in range(1, steps)]
        return solver.solve(two_points, noise, [1000.0, *inner, 600.0])

    exact = states(UNIPC, 2000)
    errors = {
        (solver.label, steps): (states(solver, steps) - exact).square().mean().sqrt().item()
        for solver in (DPMPP_2M, UNIPC)
        for steps in (20, 40)
    }
    second, third = (errors[s.label, 20] / errors[s.label, 40] for s in (DPMPP_2M, UNIPC))
    assert 3.2 < second < 5 and 6 < third < 11, errors
    calls.clear()
    assert len(UNIPC.times(10)) == 11 and sample(UNIPC, two_points, noise, 10) is not None and len(calls) == 11


def test_second_order_solver_starts_with_a_ddim_step():
    x, x0 = tensor(SMALL, 1, math.sqrt(3)), tensor(SMALL, 2)
    for t, s in ((0.9, 0.6), (0.3, 0.0), (1.0, 0.5)):
        torch.testing.assert_close(dpmpp_step(x, x0, t, s), ddim_step(x, x0, t, s), atol=2e-6, rtol=1e-5)


def test_times_of_the_second_order_solver():
    grid = dpmpp_2m_times(10)
    assert len(grid) == 11 and grid[0] == 1000 and grid[-1] == 0
    steps = np.diff([half_log_snr(tau / 1000) for tau in grid])
    assert steps == pytest.approx(np.full(10, steps[0]), rel=1e-9)
    for t in (0.0, 0.01, 0.4, 0.99):
        assert time_of_half_log_snr(half_log_snr(t)) == pytest.approx(t, abs=1e-9)
    assert all(np.diff(dpmpp_2m_times(1000)) < 0)
    for count in (0, 1001):
        with pytest.raises(ValueError, match="num_steps"):
            dpmpp_2m_times(count)


@pytest.mark.parametrize("solver", [DDIM, DPMPP_2M, UNIPC])
@pytest.mark.parametrize("steps", [1, 7])
def test_a_sample_keeps_fixed_channels_and_is_clipped(steps, solver):
    noise, given = tensor(SMALL, 200003, math.sqrt(3)), tensor(SMALL, 200004)
    plain, seen = guided_denoiser(Toy()), []

    def denoiser(x, tau):
        seen.append(tau)
        return plain(x, tau)

    result = sample(solver, denoiser, noise, steps, fixed=given, fixed_channels=(1, 3))
    assert torch.equal(result[:, [1, 3]], given[:, [1, 3]])
    assert seen == list(solver.times(steps))
    free = sample(solver, denoiser, noise, steps)
    assert (free[:, 0] - result[:, 0]).abs().max() > 0.01  # the fixed channels are seen by the others
    assert sample(solver, lambda x, tau: 3 * plain(x, tau), noise, steps).abs().max() == 1


@pytest.mark.parametrize("solver", [DDIM, DPMPP_2M, UNIPC])
def test_a_sample_can_end_before_the_noise_does(solver):
    """On Gaussian data the last prediction is the exact mean of x0 given x_t, so its spread is known."""
    spread, seen = 0.25, []

    def gaussian(x, tau):
        seen.append(tau)
        alpha = alpha_bar_at(tau / 1000)
        return math.sqrt(alpha) * spread**2 / (alpha * spread**2 + 1 - alpha) * x

    noise = tensor(SMALL, 8, math.sqrt(3))
    result = sample(solver, gaussian, noise, 50, end_time=0.4)
    assert (seen[0], seen[-1]) == (1000, 400) and len(seen) == sum(tau > 400 for tau in solver.times(50)) + 1
    assert all(before > after for before, after in pairwise(seen))
    alpha = alpha_bar_at(0.4)
    left = math.sqrt(alpha * spread**2 / (alpha * spread**2 + 1 - alpha)) * spread
    assert result.std().item() == pytest.approx(left * noise.std().item(), rel=0.03)


@pytest.mark.parametrize("solver", [DDIM, DPMPP_2M, UNIPC])
def test_a_perfect_denoiser_gives_the_clean_volume(solver):
    clean, noise = tensor(SMALL, 5), tensor(SMALL, 6, math.sqrt(3))
    assert torch.allclose(sample(solver, lambda _x, _tau: clean, noise, 7), clean)


def test_wrappers_of_a_denoiser_leave_its_own_volumes_alone():
    prediction, fixed = 2 * tensor(SMALL, 5), tensor(SMALL, 6)
    before = prediction.clone()
    wrapped = clipped(with_fixed_channels(lambda _x, _tau: prediction, 3 * fixed, (2,)))(fixed, 0.0)
    assert torch.equal(prediction, before)
    assert torch.equal(wrapped[:, 2], (3 * fixed[:, 2]).clamp(-1, 1))
    assert torch.equal(wrapped[:, [0, 1, 3]], before[:, [0, 1, 3]].clamp(-1, 1))


def test_the_progress_bar_moves_with_the_times_however_often_they_are_called(monkeypatch):
    passed = []

    def track(times, *, description):
        assert description == "here"
        for i, tau in enumerate(times):
            yield tau
            passed.append(i)

    monkeypatch.setattr("medsyn.diffusion.sampling.track", track)
    denoiser = with_progress(lambda x, _tau: x, [1000.0, 500.0, 0.0], "here")
    counts = []
    for tau in (1000.0, 1000.0, 500.0, 750.0, 0.0, 0.0):  # twice the same, and one between two times
        assert denoiser(tensor(SMALL, 1), tau) is not None
        counts.append(len(passed))
    assert counts == [1, 1, 2, 2, 3, 3]


def test_loss_is_the_squared_error_of_the_clean_volume():
    x0, epsilon, t = tensor(SMALL, 1), tensor(SMALL, 2), torch.tensor([0.3])
    seen = {}

    def network(x, tau, **given):
        seen.update(x=x, tau=tau, **given)
        return torch.zeros_like(x)

    loss = denoising_loss(network, x0, epsilon, t, text=None)
    assert loss.item() == pytest.approx(x0.square().mean().item())
    alpha = alpha_bar_at(0.3)
    assert torch.allclose(seen["x"], math.sqrt(alpha) * x0 + math.sqrt(1 - alpha) * epsilon, atol=1e-6)
    assert seen["tau"].item() == pytest.approx(300, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "order", "mean", "std"),
    [
        ("low", "A", 0.034213, 1.298319),
        ("low", "B", -0.151541, 1.192538),
        ("sr", "A", 0.373046, 1.173662),
        ("sr", "B", 0.212547, 1.148442),
    ],
)
def test_training_loss_of_the_parity_networks(kind, order, mean, std):
    """With x0 = 0 and the noise that makes x_t the parity input, the loss is the mean square of the parity output."""
    given, t = inputs(kind), TAU / 1000
    x_t = given.pop("x")
    given.pop("tau")
    epsilon = x_t / (1 - alpha_bar(t)).sqrt()[:, None, None, None, None]
    text = {"text": text_states(), "drop_text": torch.tensor([False, False])} if kind == "low" else {}
    with torch.no_grad():
        loss = denoising_loss(filled_network(kind, order), torch.zeros(SHAPE), epsilon, t, **given, **text)
    assert loss.item() == pytest.approx(mean**2 + std**2, abs=1e-4)


def test_linear_enlargement_keeps_the_samples_and_interpolates_between_them():
    ramp = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(1, 1, 16, 8, 8)
    low_resolution = LowResolution(4, interpolation="linear")
    low = low_resolution.reduce(ramp)
    high = low_resolution.enlarge(low)
    assert high.shape == ramp.shape
    torch.testing.assert_close(low_resolution.reduce(high), low)
    torch.testing.assert_close(high[:, :, :13], ramp[:, :, :13])
    assert (high[:, :, 12:] == 12).all()


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
def test_mean_reduction_takes_the_mean_of_each_cube_and_puts_it_at_the_centre(interpolation):
    ramp = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(1, 1, 16, 8, 8)
    low_resolution = LowResolution(4, "mean", interpolation)
    low = low_resolution.reduce(ramp)
    assert low[0, 0, :, 0, 0].tolist() == [1.5, 5.5, 9.5, 13.5]
    high = low_resolution.enlarge(low)
    if interpolation == "nearest":
        torch.testing.assert_close(low_resolution.reduce(high), low)
    else:
        torch.testing.assert_close(high[:, :, 2:14], ramp[:, :, 2:14])
        assert (high[:, :, :2] == 1.5).all() and (high[:, :, 14:] == 13.5).all()


def test_channel_weights_multiply_the_error_of_their_channels():
    x0, epsilon, t = tensor((2, 2, 4, 4, 4), 1), tensor((2, 2, 4, 4, 4), 2), torch.tensor([0.2, 0.9])
    one, two = x0[:, 0].square().mean(), x0[:, 1].square().mean()  # of a network that predicts 0
    loss = denoising_loss(zeros, x0, epsilon, t, weights=torch.tensor([[0.5, 1.5]]))
    torch.testing.assert_close(loss, (0.5 * one + 1.5 * two) / 2)
    torch.testing.assert_close(denoising_loss(zeros, x0, epsilon, t), (one + two) / 2)


def zeros(x, tau):
    return torch.zeros_like(x)


def test_super_res_condition():
    x0, noise = tensor((2, 1, 8, 8, 8), 1), tensor((2, 1, 8, 8, 8), 2)
    low = LowResolution(4).enlarge(LowResolution(4).reduce(x0))
    assert torch.equal(low[0, 0, :4, :4, :4], x0[0, 0, 0, 0, 0].expand(4, 4, 4))
    assert torch.equal(low[0, 0, 4:, :4, 4:], x0[0, 0, 4, 0, 4].expand(4, 4, 4))
    condition = super_res_condition(x0, LowResolution(4), noise, torch.tensor([0.0, 0.25]))
    assert torch.equal(condition[0], low[0])
    assert torch.allclose(condition[1], 0.75 * low[1] + 0.25 * noise[1])


def test_noise_is_per_volume_and_per_network():
    together = volume_noise([3, 4, 5], (4, 2, 2, 2), "low_res")
    assert torch.equal(together[1], volume_noise([4], (4, 2, 2, 2), "low_res")[0])
    assert not torch.equal(together[1], volume_noise([4], (4, 2, 2, 2), "super_res")[0])
    large = volume_noise([9], (1, 32, 32, 32), "low_res")
    assert abs(large.mean().item()) < 0.02 and abs(large.std().item() - 1) < 0.02
    assert not torch.equal(torch.rand(3, generator=seeded(1, 2)), torch.rand(3, generator=seeded(2, 1)))
    assert np.isfinite(large.numpy()).all()
