"""The measured start distribution has the moments of encoded data."""

import pytest
import torch
from torch import nn

import networks
from training.methods.prior import measure_prior, with_prior


class _Affine(nn.Module):
    """An encoder with known moments: mu = A x + c, deviations s."""

    def __init__(self, matrix, offset, std):
        super().__init__()
        self.matrix, self.offset, self.std = matrix, offset, std

    def forward(self, x, eps):
        mu = (x.flatten(1) @ self.matrix.T + self.offset).reshape(x.shape)
        logvar = (2 * self.std.log()).expand(len(x), -1).reshape(x.shape)
        return mu + eps * (logvar / 2).exp(), mu, logvar


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_measured_prior(rank):
    """The covariance is that of q(z) in full, with all directions; on the diagonal, without any."""
    g = torch.Generator().manual_seed(0)
    matrix, offset = torch.randn(4, 4, generator=g), torch.randn(4, generator=g)
    std = torch.rand(4, generator=g) + 0.2
    x = torch.randn(20_000, 4, 1, 1, generator=g)
    moments = measure_prior(_Affine(matrix, offset, std), x.split(512), rank)
    net = networks.build("VelocityNetwork", img_resolution=1, img_channels=4, model_type="MLP", hidden=3)
    net.conditioning, net.latent = "vector", True  # as a run tells its networks
    twin = with_prior(net, moments)
    assert (twin.conditioning, twin.latent) == ("vector", True)
    assert all(torch.equal(twin.state_dict()[k], v) for k, v in net.state_dict().items())
    z = twin.start_noise(torch.randn(50_000, 4, 1, 1, generator=g, dtype=torch.float64)).flatten(1)
    want = matrix @ matrix.T + std.square().diag()
    torch.testing.assert_close(z.mean(0).float(), torch.zeros(4), atol=0.05, rtol=0)
    cov = z.T.cov().float()
    if rank != 1:
        torch.testing.assert_close(cov, want if rank else want.diag().diag(), atol=0.15, rtol=0.05)
    assert abs(float(cov.trace() / want.trace()) - 1) < 0.25


def test_many_dimensions_are_projected():
    """Above the limit of the exact method: one direction of large variance is found, the rest keeps its trace."""
    u = torch.zeros(4096)
    u[:64] = 1 / 8
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(256, 1, generator=g) * 8 * u).reshape(256, 1, 64, 64)

    def encoder(x, eps):
        return x, x, torch.zeros_like(x)

    moments = measure_prior(encoder, [x], rank=1)
    assert abs(float((moments["directions"][0] * u).sum())) > 0.99
    # variance 64 + 1 along u, in units of the deviations of its 64 elements, whose variance is about 2
    assert 28 < float(moments["gains"][0]) ** 2 < 37
    assert abs(float(moments["rest"]) ** 2 * 4095 + float(moments["gains"][0]) ** 2 - 4096) < 1
    with pytest.raises(ValueError, match="2 or more"):
        measure_prior(encoder, [x[:1]])
