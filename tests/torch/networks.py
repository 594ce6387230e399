"""Small networks with the blocks of known ones."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


class NormAct(nn.BatchNorm2d):
    """A batch norm with its activation, as timm's BatchNormAct2d."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class ConvNormAct(nn.Module):
    """As timm's: a convolution and what follows, in one module."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


def depthwise(channels: int, size: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, size, stride, size // 2, groups=channels, bias=bias)


def mobilenet_v1() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        depthwise(8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        depthwise(12, 3, 2), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


class InvertedResidual(nn.Module):
    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.expand = ConvNormAct(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide))
        self.act = nn.ReLU6(inplace=True)
        self.conv_dw = depthwise(wide, 3)
        self.bn1 = NormAct(wide, nn.ReLU6())
        self.aa, self.se = nn.Identity(), nn.Identity()
        self.conv_pw = nn.Conv2d(wide, channels, 1, bias=False)
        self.bn2 = NormAct(channels, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        y = self.aa(self.bn1(self.conv_dw(self.act(self.expand(x)))))
        return x + self.bn2(self.conv_pw(self.se(y)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(torch.nn.functional.silu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class Excited(InvertedResidual):
    """EfficientNet's block."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__(channels, wide)
        self.bn1 = NormAct(wide, nn.SiLU())
        self.se = SqueezeExcite(wide)


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_dw = depthwise(channels, 7, bias=True)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


class LargeKernels(nn.Module):
    """RepLKNet's block: a large kernel beside a small one, then an activation and a pointwise."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.large = ConvNormAct(depthwise(channels, 13), nn.BatchNorm2d(channels))
        self.small = ConvNormAct(depthwise(channels, 5), nn.BatchNorm2d(channels))
        self.act = nn.ReLU()
        self.pw = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pw(self.act(self.large(x) + self.small(x)))


class Untraceable(nn.Module):
    """A forward that looks at values; its body is in order all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            OrderedDict(dw=depthwise(4, 3, bias=True), act=nn.GELU(), pw=nn.Conv2d(4, 6, 1))
        )
        self.alone = depthwise(6, 3)
        self.other = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.other(self.alone(y)) if y.sum() > 0 else self.other(y)


def shaken(model: nn.Module) -> nn.Module:
    """Return a model in eval mode whose batch norms are no identities."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for one, low in (
                (module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):  # fmt: skip
                values = torch.rand(one.shape, generator=generator, dtype=torch.float64)
                one.data.copy_(values + low)
    return model.eval()
