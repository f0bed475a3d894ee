"""Texts as the kinds of their token states."""

from __future__ import annotations

import torch

from medsyn.config import UNetConfig
from medsyn.models.fast.unet import FastUNet
from medsyn.models.linear_estimate import PrincipalComponents, TextRegression, principal_components
from medsyn.models.text_features import TokenKinds, text_features, token_kinds

NUM_KINDS = 256
WORDS = (8 * torch.randn(300, 16, generator=torch.Generator().manual_seed(0))).round()  # sums of them are exact


def generator():
    return torch.Generator().manual_seed(1)


def texts_of(words):
    return WORDS[torch.tensor(words)]


def test_kinds_of_few_words_are_the_words():
    kinds = token_kinds(WORDS[:5].repeat(40, 1), NUM_KINDS, generator())
    features = text_features(texts_of([[0, 1, 1], [4, 4, 4], [2, 3, 0]]), kinds)
    shares = text_features(WORDS[:5, None], kinds)
    assert ((shares > 1e-3).float() @ (shares > 1e-3).float().T).eq(0).sum() == 20  # no word shares a kind with another
    expected = torch.stack([shares[[0, 1]].amax(dim=0), shares[4], shares[[2, 3, 0]].amax(dim=0)])
    torch.testing.assert_close(features, expected)


def test_padding_does_not_count():
    kinds = token_kinds(WORDS, NUM_KINDS, generator())
    text = texts_of([[3, 4]])
    padded = torch.cat([text, torch.zeros(1, 5, 16)], dim=1)
    torch.testing.assert_close(text_features(padded, kinds), text_features(text, kinds))
    assert not text_features(torch.zeros(1, 5, 16), kinds).any()


def test_kinds_are_the_same_for_the_same_seed():
    states = torch.randn(2000, 16, generator=generator())
    one, other = (token_kinds(states, NUM_KINDS, generator()) for _ in range(2))
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


def test_what_the_mean_state_does_not_tell_is_told_by_the_kinds():
    """Two tokens that lie on both sides of a third, or that third twice: the mean of their states is the same."""
    draw = generator()
    told = torch.randint(2, (400,), generator=draw)
    step = told[:, None] * WORDS[1]
    text = torch.stack([WORDS[0] + step, WORDS[0] - step], dim=1)
    torch.testing.assert_close(text.mean(dim=1), WORDS[:1].expand(400, -1))
    kinds = token_kinds(text.flatten(0, 1), NUM_KINDS, draw)
    volumes = 10 * told[:, None] + torch.randn(400, 64, generator=draw)
    volumes = (volumes - volumes.mean(dim=0)).reshape(400, 1, 4, 4, 4)
    variance = principal_components(volumes, 1).variances[0]
    by_mean = principal_components(volumes, 1, text.mean(dim=1)).variances[0]
    by_kinds = principal_components(volumes, 1, text_features(text, kinds)).variances[0]
    assert by_mean > 0.99 * variance
    assert by_kinds < 0.01 * variance


def test_the_null_text_moves_nothing():
    config = UNetConfig(
        dim=8, mults=(1, 2), init_kernel=3, num_groups=4, mean_volume=True, num_components=2, num_text_kinds=NUM_KINDS
    )
    network = FastUNet(config, channels=1, cond_dim=6, num_tokens=3)
    text = TextRegression(torch.randn(2, NUM_KINDS), torch.randn(2))
    kinds = TokenKinds(torch.randn(NUM_KINDS, 6), torch.randn(NUM_KINDS))
    vectors = torch.randn(2, 1, 4, 4, 4)
    known = PrincipalComponents(vectors, torch.ones(2), torch.ones(1), text, kinds)
    network.set_statistics(torch.zeros(1, 4, 4, 4), components=known)
    states = torch.randn(2, 3, 6)
    given = network.text_of_samples(2, states, torch.tensor([False, True]))
    moved, null = network.text_coefficients(given)
    torch.testing.assert_close(moved, text.weight @ text_features(states[:1], kinds)[0] + text.offset)
    assert not null.any()
    assert not network.text_coefficients(network.text_of_samples(2, None, None)).any()
