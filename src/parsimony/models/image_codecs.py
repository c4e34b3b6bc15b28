"""Variational image codecs: networks, priors, and the training objective (Balle et al. 2018, Minnen et al. 2018).

::

    x -> g_a -> y -> Q -> y^ -> g_s -> x^       factorised prior: a density a channel (arXiv 1802.01436, appendix 6.1)
                |         ^ mu, sigma
               h_a -> Q -> z^ -> h_s            hyperprior: y^ ~ N(mu, sigma) around predicted means (arXiv 1809.02736)

Layers, initial values and constants follow CompressAI (arXiv 2011.03029); what is coded is in `latent_coding`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALES = torch.exp(torch.linspace(math.log(0.11), math.log(256), 64, dtype=torch.float64))
"""Standard deviations for which there are tables."""
LIKELIHOOD_FLOOR = 1e-9
TAIL_MASS = 1e-9
"""What a table leaves to values outside of it."""


class _Floor(torch.autograd.Function):
    """max(x, bound), through which the gradient passes where it would raise x again."""

    @staticmethod
    def forward(ctx, x, bound):
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * ((x >= ctx.bound) | (grad < 0)), None


class GDN(nn.Module):
    """Generalised divisive normalisation, y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2), or its inverse, x_i * sqrt.

    ``beta`` and ``gamma`` are squares of the parameters less a small offset, so that they stay non-negative and still
    move near zero (arXiv 1511.06281).
    """

    OFFSET = 2.0**-36

    def __init__(self, channels: int, inverse: bool = False):
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.ones(channels).add(self.OFFSET).sqrt())
        self.gamma = nn.Parameter((0.1 * torch.eye(channels)).add(self.OFFSET).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        beta = _Floor.apply(self.beta, math.sqrt(1e-6 + self.OFFSET)) ** 2 - self.OFFSET
        gamma = _Floor.apply(self.gamma, math.sqrt(self.OFFSET)) ** 2 - self.OFFSET
        norm = F.conv2d(x * x, gamma[:, :, None, None], beta)
        return x * (norm.sqrt() if self.inverse else norm.rsqrt())


class FactorisedPrior(nn.Module):
    """A density a channel: the derivative of a monotone network of widths 3, 3, 3, 3 (arXiv 1802.01436, 6.1).

    Attributes
    ----------
    quantiles : Parameter [C, 3]
        Where the cumulative is tail mass / 2, a half, and 1 - tail mass / 2; fitted by `quantile_loss` alone.
    """

    WIDTHS = (1, 3, 3, 3, 3, 1)

    def __init__(self, channels: int, spread: float = 10.0):
        super().__init__()
        scale = spread ** (1 / (len(self.WIDTHS) - 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for a, b in zip(self.WIDTHS, self.WIDTHS[1:], strict=False):
            self.matrices.append(torch.full((channels, b, a), math.log(math.expm1(1 / scale / b))))
            self.biases.append(torch.rand(channels, b, 1) - 0.5)
            self.factors.append(torch.zeros(channels, b, 1))
        self.quantiles = nn.Parameter(torch.tensor([-spread, 0.0, spread]).repeat(channels, 1))

    def logits(self, values: Tensor, fixed: bool = False) -> Tensor:
        """Logits of the cumulative at values [C, n]; ``fixed``: the network's parameters get no gradient."""
        x, last = values[:, None], len(self.matrices) - 1
        for n, parameters in enumerate(zip(self.matrices, self.biases, self.factors, strict=True)):
            matrix, bias, factor = (p.detach() for p in parameters) if fixed else parameters
            x = F.softplus(matrix) @ x + bias
            if n < last:
                x = x + torch.tanh(factor) * torch.tanh(x)
        return x[:, 0]

    def likelihood(self, values: Tensor) -> Tensor:
        """Mass of [v - 1/2, v + 1/2] at values [C, n], computed on the side of the centre where it does not cancel."""
        lower, upper = self.logits(values - 0.5), self.logits(values + 0.5)
        sign = -torch.sign(lower + upper).detach()
        return (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()

    def quantile_loss(self) -> Tensor:
        target = math.log(2 / TAIL_MASS - 1)
        aims = torch.tensor([-target, 0.0, target], device=self.quantiles.device)
        return (self.logits(self.quantiles, fixed=True) - aims).abs().sum()

    def bits(self, y: Tensor) -> Tensor:
        """Bits of values [B, C, h, w]."""
        return bits(self.likelihood(y.transpose(0, 1).flatten(1))).sum()


def gaussian_likelihood(offset: Tensor, scale: Tensor) -> Tensor:
    """Mass of an interval of width 1 around ``offset`` from the mean of a Gaussian of this standard deviation."""
    offset, root = offset.abs(), math.sqrt(0.5)
    return 0.5 * (torch.erfc((offset - 0.5) / scale * root) - torch.erfc((offset + 0.5) / scale * root))


def bits(likelihood: Tensor) -> Tensor:
    return -torch.log2(_Floor.apply(likelihood, LIKELIHOOD_FLOOR))


def _down(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 5, 2, 2)


def _up(inputs: int, outputs: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, 5, 2, 2, 1)


class CodecNetwork(nn.Module):
    """Transforms and priors of one codec.

    Parameters
    ----------
    N, M : int
        Channels of the hidden layers and of the latent y.
    K : int
        Channels of the hyper-latent z; 0: no hyperprior, y has a factorised prior.
    """

    def __init__(self, N: int, M: int, K: int = 0):
        super().__init__()
        self.N, self.M, self.K = N, M, K
        self.g_a = nn.Sequential(_down(3, N), GDN(N), _down(N, N), GDN(N), _down(N, N), GDN(N), _down(N, M))
        self.g_s = nn.Sequential(
            _up(M, N), GDN(N, True), _up(N, N), GDN(N, True), _up(N, N), GDN(N, True), _up(N, 3)
        )  # fmt: skip
        if K:
            self.h_a = nn.Sequential(
                nn.Conv2d(M, K, 3, 1, 1), nn.LeakyReLU(), _down(K, K), nn.LeakyReLU(), _down(K, K)
            )  # fmt: skip
            self.h_s = nn.Sequential(
                _up(K, K), nn.LeakyReLU(), _up(K, K), nn.LeakyReLU(), nn.Conv2d(K, 2 * M, 3, 1, 1)
            )  # fmt: skip
        self.prior = FactorisedPrior(K or M)
        self.gain = 1.0

    @torch.no_grad()
    def fold(self) -> None:
        """Move ``gain``, by which latents are wider in training than the layers make them, into the layers."""
        for parameter in self.g_a[-1].parameters():
            parameter *= self.gain
        self.g_s[0].weight /= self.gain
        self.gain = 1.0

    @property
    def stride(self) -> int:
        """Sides of images must be multiples of this."""
        return 64 if self.K else 16

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction of images [B, 3, H, W] with values 0 to 1, and their bits, with noise for rounding."""
        y = self.gain * self.g_a(x)
        noisy = y + torch.rand_like(y) - 0.5
        x_hat = self.g_s(noisy / self.gain)
        if not self.K:
            return x_hat, self.prior.bits(noisy)
        z = self.h_a(y)
        z = z + torch.rand_like(z) - 0.5
        scale, mean = self.h_s(z).chunk(2, 1)
        likelihood = gaussian_likelihood(noisy - mean, _Floor.apply(scale, float(SCALES[0])))
        return x_hat, self.prior.bits(z) + bits(likelihood).sum()
