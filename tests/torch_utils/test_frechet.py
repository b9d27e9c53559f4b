import numpy as np
import pytest
import torch
from golden_cases import cases

import torch_utils.frechet
from torch_utils.frechet import (
    FeatureStats,
    Moments,
    factor,
    feature_stats,
    frechet_distance,
    frechet_influence,
)
from torch_utils.frechet import _spectrum as spectrum
from torch_utils.reference_file import load_moments, save_moments

F64 = torch.float64


def stats_of(features, batch):
    stats = FeatureStats(features.shape[1])
    for part in features.split(batch):
        stats.append(part)
    return stats


def gaussian(dim, num, seed):
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=rng, dtype=F64)
    return torch.randn(num, dim, generator=rng, dtype=F64) @ mix + torch.randn(dim, generator=rng, dtype=F64)


def root_trace_by_eigenvalues(sigma1, sigma2):
    """tr sqrt(S1 S2) from the eigenvalues of the product: slow and less exact, but independent."""
    return np.sqrt(np.abs(np.linalg.eigvals(sigma1.numpy() @ sigma2.numpy()).real)).sum()


@pytest.mark.parametrize("case", cases("edm", "fid"))
@pytest.mark.parametrize("batch", [7, 10_000])
def test_golden(case, batch):
    moments = []
    for i in (1, 2):
        mu, sigma = stats_of(case.tensor(f"features{i}"), batch).mean_cov()
        case.expect(f"mu{i}", mu)
        case.expect(f"sigma{i}", sigma)
        moments += [mu, sigma]
    case.expect("fid", np.array(frechet_distance(*moments)))


def test_statistics_are_the_definition_and_survive_a_large_mean():
    features = gaussian(5, 101, seed=0) + 1e6
    mu, sigma = stats_of(features, 8).mean_cov()
    np.testing.assert_allclose(mu, features.mean(0), rtol=1e-14)
    np.testing.assert_allclose(sigma, np.cov(features.numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


def test_batch_size_and_order_do_not_matter():
    features = gaussian(6, 60, seed=1)
    _, sigma = stats_of(features, 60).mean_cov()
    for other in (stats_of(features, 1), stats_of(features.flip(0), 13)):
        np.testing.assert_allclose(other.mean_cov()[1], sigma, rtol=1e-12, atol=1e-12)


def test_an_empty_batch_changes_nothing():
    stats = stats_of(gaussian(3, 10, seed=2), 5)
    before = stats.mean_cov()[1]
    stats.append(torch.zeros(0, 3))
    assert stats.num == 10
    assert torch.equal(stats.mean_cov()[1], before)


def test_one_dimension_closed_form():
    mu1, mu2, std1, std2 = 0.5, -1.0, 2.0, 0.25
    result = frechet_distance(
        torch.tensor([mu1]), torch.tensor([[std1**2]]), torch.tensor([mu2]), torch.tensor([[std2**2]])
    )
    assert result == pytest.approx((mu1 - mu2) ** 2 + (std1 - std2) ** 2, rel=1e-12)


def test_commuting_covariances_closed_form():
    rng = torch.Generator().manual_seed(3)
    basis, _ = torch.linalg.qr(torch.randn(20, 20, generator=rng, dtype=F64))
    a, b = torch.rand(2, 20, generator=rng, dtype=F64)
    a[:5] = 0  # singular on one side, and on both
    b[3:8] = 0
    mu1, mu2 = torch.randn(2, 20, generator=rng, dtype=F64)
    expected = (mu1 - mu2).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    result = frechet_distance(mu1, basis * a @ basis.T, mu2, basis * b @ basis.T)
    assert result == pytest.approx(float(expected), rel=1e-8)


@pytest.mark.parametrize(("num1", "num2"), [(200, 300), (200, 9), (9, 12), (40, 40)])
def test_general_covariances(num1, num2):
    (mu1, s1), (mu2, s2) = (stats_of(gaussian(24, n, seed=n + i), 50).mean_cov() for i, n in enumerate((num1, num2)))
    expected = (mu1 - mu2).square().sum() + s1.trace() + s2.trace() - 2 * root_trace_by_eigenvalues(s1, s2)
    assert frechet_distance(mu1, s1, mu2, s2) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(mu2, s2, mu1, s1) == pytest.approx(frechet_distance(mu1, s1, mu2, s2), rel=1e-9)


@pytest.mark.parametrize("num", [2, 10, 31, 32, 33, 34, 500])
def test_a_distribution_has_no_distance_to_itself(num):
    mu, sigma = stats_of(gaussian(32, num, seed=num), 64).mean_cov()
    assert 0 <= frechet_distance(mu, sigma, mu, sigma) < 1e-8 * float(sigma.trace())


def test_both_ways_to_the_trace_agree_and_the_fast_one_knows_its_limits():
    (_, s1), (_, s2) = (stats_of(gaussian(24, n, seed=n), 50).mean_cov() for n in (400, 500))
    exact = torch.linalg.svdvals(factor(s1).T @ factor(s2)).sum()
    for vectors in (False, True):
        assert float(spectrum(s1, s2, vectors)[1].sqrt().sum()) == pytest.approx(float(exact), rel=1e-10)
    assert spectrum(s1, s2, allowed=0) is None
    _, singular = stats_of(gaussian(24, 12, seed=1), 50).mean_cov()
    for pair in ((s1, singular), (singular, s1), (singular, singular)):
        assert spectrum(*pair, allowed=1e-9 * float(s1.trace())) is None


def test_blocks_of_the_product_are_the_product(monkeypatch):
    monkeypatch.setattr(torch_utils.frechet, "BLOCK", 5)
    (_, sigma), (_, other) = (stats_of(gaussian(12, n, seed=n), 50).mean_cov() for n in (40, 50))
    lower = torch.linalg.cholesky(other)
    whole = lower.T @ sigma @ lower
    torch.testing.assert_close(torch_utils.frechet._between(lower, sigma).tril(), whole.tril(), rtol=1e-12, atol=0)


def test_influence_is_what_one_vector_more_does(monkeypatch):
    """Against the distance after one vector is given a little more weight, by both ways to it."""
    x, y = gaussian(6, 300, seed=1), gaussian(6, 400, seed=2) * 1.5 + 0.3
    one, other = (Moments(f.mean(0), f.T.cov(correction=0)) for f in (x, y))
    value, found = frechet_influence(one, other, x[:5])
    assert value == pytest.approx(one.distance(other), rel=1e-12)
    more = 1e-6
    for f, influence in zip(x, found, strict=False):
        mu = (1 - more) * one.mu + more * f
        second = (1 - more) * (one.sigma + torch.outer(one.mu, one.mu)) + more * torch.outer(f, f)
        moved = (Moments(mu, second - torch.outer(mu, mu)).distance(other) - value) / more
        # of the sum over all vectors, which the constant makes zero
        assert moved == pytest.approx(float(influence) - float(frechet_influence(one, other, x)[1].mean()), abs=1e-4)
    monkeypatch.setattr(torch_utils.frechet, "_spectrum", lambda *args, **kwargs: None)
    torch.testing.assert_close(frechet_influence(one, other, x[:5])[1], found, rtol=1e-5, atol=1e-5)


def test_points_without_spread():
    zero = torch.zeros(3, 3)
    assert frechet_distance(torch.zeros(3), zero, torch.ones(3), zero) == 3
    assert frechet_distance(torch.zeros(3), zero, torch.zeros(3), torch.eye(3)) == pytest.approx(3)
    one, other = Moments(torch.ones(3), torch.eye(3)), Moments(torch.zeros(3), zero)
    value, influence = frechet_influence(one, other, torch.tensor([[1.0, 1, 1], [2, 1, 1]]))
    assert (value, influence.tolist()) == (6, [0, 3])  # |f|^2 in place of |1|^2, but for the constant


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3)), "one size"),
        ((torch.zeros(2), torch.eye(3), torch.zeros(2), torch.eye(2)), "one size"),
        ((torch.zeros(2), torch.eye(2) * torch.nan, torch.zeros(2), torch.eye(2)), "NaN"),
        ((torch.zeros(2), -torch.eye(2), torch.zeros(2), torch.eye(2)), "not a covariance"),
    ],
)
def test_bad_moments(arguments, words):
    with pytest.raises(ValueError, match=words):
        frechet_distance(*arguments)


def test_bad_features():
    stats = FeatureStats(3)
    with pytest.raises(ValueError, match="do not fit"):
        stats.append(torch.zeros(4, 2))
    stats.append(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least 2"):
        stats.mean_cov()


def test_feature_stats_streams():
    class Mean:
        name, dim, device = "mean", 3, torch.device("cpu")

        def __call__(self, images):
            return images.float().mean(dim=(2, 3))

    images = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8)
    stats = feature_stats(iter(images.split(4)), Mean())
    assert stats.num == 10
    np.testing.assert_allclose(stats.mean_cov()[0], images.double().mean(dim=(0, 2, 3)), rtol=1e-6)
    assert feature_stats(iter([]), Mean()).num == 0


def test_moments_file(tmp_path):
    moments = stats_of(gaussian(4, 9, seed=5), 3).moments("pixels")
    path = tmp_path / "new" / "folder" / "ref.npz"
    save_moments(path, moments)
    with np.load(path) as data:
        assert data["mu"].dtype == data["sigma"].dtype == np.float64
    loaded = load_moments(path)
    assert torch.equal(loaded.mu, moments.mu)
    assert torch.equal(loaded.sigma, moments.sigma)
    assert (loaded.num, loaded.features) == (9, "pixels")
    assert [p.name for p in path.parent.iterdir()] == ["ref.npz"]


def test_moments_file_of_others(tmp_path):
    path = tmp_path / "ref.npz"
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2))
    assert load_moments(path).num is None
    assert load_moments(path).distance(Moments(torch.ones(2), torch.eye(2))) == pytest.approx(2)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mean": np.zeros(2)}, "and not mu and sigma"),
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, "do not match"),
        ({"mu": np.array([None]), "sigma": np.eye(1)}, "not an npz"),
        ({"mu": np.zeros(2, complex), "sigma": np.eye(2)}, "mu is complex128 of shape"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0, 1]])}, "not symmetric"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "num": np.arange(3)}, r"num is int64 of shape \[3\]"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "features": np.array(["x", "y"])}, "features is <U1 of shape"),
    ],
)
def test_bad_moments_file(tmp_path, arrays, words):
    path = tmp_path / "ref.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=words):
        load_moments(path)


def test_file_that_is_no_npz(tmp_path):
    path = tmp_path / "ref.npz"
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match="not an npz"):
        load_moments(path)


@pytest.mark.slow
@pytest.mark.parametrize("num", [4000, 900])
def test_full_size(num):
    features = torch.randn(num, 2048, generator=torch.Generator().manual_seed(num)) * torch.logspace(0, -2, 2048)
    mu, sigma = stats_of(features, 256).mean_cov()
    assert frechet_distance(mu, sigma, mu, sigma) < 1e-8 * float(sigma.trace())
    expected = float(sigma.trace()) * (1 - 3**0.5) ** 2
    assert frechet_distance(mu, sigma, mu, 3 * sigma) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}, "holds images .arr_0. and not mu and sigma"),
        ({"mu_s": np.zeros(3), "sigma_s": np.eye(3)}, "holds arrays .mu_s, sigma_s. and not"),
        ({}, "holds arrays .none. and not"),
        ({"mu": np.zeros(3)}, "holds arrays .mu. and not"),
        ({"mu": np.zeros((3, 1)), "sigma": np.eye(3)}, "do not match"),
        ({"mu": np.array([None]), "sigma": np.eye(1)}, "is not an npz file"),
    ],
)
def test_reference_files_of_other_tools(arrays, words, tmp_path):
    np.savez(tmp_path / "ref.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        load_moments(tmp_path / "ref.npz")
