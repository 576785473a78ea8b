"""UPLiFT (2601.17950) as torch modules, with the names of the released weights; the same networks as foveate/models/vision/uplift.h."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.attender import LocalAttender


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def norm_of(kind: str, channels: int) -> nn.Module:
    if kind not in ("batch", "layer"):
        raise ValueError(f"uplift: norm must be batch or layer, got {kind!r}")
    return nn.BatchNorm2d(channels) if kind == "batch" else ChannelNorm(channels, eps=1e-6)


def add_channels(y: Tensor, x: Tensor) -> Tensor:
    """y plus x as far as both have channels."""
    return y + F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))


class UpliftConv(nn.Module):
    """`convs` convolutions of 3 x 3, each with its norm and a ReLU, then one of 1 x 1, plus the input as far as both have channels."""

    def __init__(self, inputs: int, outputs: int, convs: int, norm: str):
        super().__init__()
        layers = []
        for i in range(convs):
            conv = nn.Conv2d(outputs if i else inputs, outputs, 3, padding=1, bias=False)
            layers += [conv, norm_of(norm, outputs), nn.ReLU()]
        self.conv = nn.Sequential(*layers, nn.Conv2d(outputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return add_channels(self.conv(x), x)


def uplift_convs(inputs: int, widths: tuple[int, ...], convs: int, norm: str) -> nn.Sequential:
    sizes = zip((inputs, *widths), widths)
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(*(UpliftConv(*size, convs, norm) for size in sizes))))


def nearest(x: Tensor, like: Tensor) -> Tensor:
    return x if x.shape[2:] == like.shape[2:] else F.interpolate(x, size=like.shape[2:])


class EncoderStep(nn.Module):
    """Makes the encoder's map half as large from one group to the next: kind "conv" or "max"; adds_smaller: plus the map by bilinear means."""

    def __init__(self, channels: int, kind: str, adds_smaller: bool):
        super().__init__()
        conv = [nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        self.down = nn.Sequential(*conv) if kind == "conv" else nn.MaxPool2d(2, 2)
        self.adds_smaller = adds_smaller

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < 2:
            raise ValueError(f"uplift: the encoder's maps must be 2 x 2 or more where a step halves them, got {x.shape[2]} x {x.shape[3]}")
        y = self.down(x)
        return y + F.interpolate(x, size=y.shape[2:], mode="bilinear", align_corners=True) if self.adds_smaller else y


class UPLiFT(nn.Module):
    """Features of a frozen backbone made as fine as its image, iteration by iteration with one small network.

    image [B, 3, patch H, patch W], features [B, channels, H, W] -> [B, channels, F H, F W], F = (2 ** (len(decoder) - 1)) ** iterations

    channels, patch:  of the features: their channels, and pixels of a token (14: the image is enlarged to 16 a token)
    norm:             "batch", or "layer" over channels
    encoder:          widths of each group over the image
    encoder_step:     what makes the map half as large between two groups: "none", "conv" (3 x 3, batch norm, ReLU) or "max" (of 2 x 2)
    adds_smaller:     to what a step gives: its input, smaller by bilinear means
    decoder:          widths of each group, between which the map is doubled; 1 to 5 groups, at most as many as the encoder's
    convs:            3 x 3 convolutions of a block of the decoder
    offsets:          of the attender, see attender_offsets; None: a 1 x 1 convolution instead, features then change their distribution
    noise:            channels of noise beside the inputs of the decoder and the refiner, times noise_scale
    refiner:          widths of blocks behind the attender
    shares_encoder:   one pass over the image for all iterations, else one of the enlarged image each
    weights:          of the attender, see local_attender
    The defaults are those for ViTs; UPLiFT.for_vae() has those for Stable Diffusion's latents.
    Raises ValueError: options or shapes that do not fit.

    >>> UPLiFT(channels=8, patch=8).eval()(torch.zeros(1, 3, 16, 24), torch.zeros(1, 8, 2, 3), iterations=2).shape
    torch.Size([1, 8, 8, 12])
    """

    def __init__(
        self,
        channels: int = 384,
        patch: int = 14,
        *,
        norm: str = "batch",
        encoder: tuple[tuple[int, ...], ...] = ((16,), (32,), (64,), (128,), (128,)),
        encoder_step: str = "none",
        adds_smaller: bool = False,
        decoder: tuple[tuple[int, ...], ...] = ((64,), (64,)),
        convs: int = 2,
        offsets: int | None = 17,
        noise: int = 0,
        noise_scale: float = 1.0,
        refiner: tuple[int, ...] = (),
        shares_encoder: bool = True,
        weights: str = "softmax",
    ):
        super().__init__()
        if not 1 <= len(decoder) <= min(5, len(encoder)) or not all((*encoder, *decoder)):
            raise ValueError(
                "uplift: the decoder must have 1 to 5 groups, the encoder as many or more, and every group a width, "
                f"got {len(decoder)} and {len(encoder)} groups"
            )
        if encoder_step not in ("none", "conv", "max"):
            raise ValueError(f"uplift: encoder_step must be none, conv or max, got {encoder_step!r}")
        if min(channels, patch, convs) < 1 or noise < 0:
            raise ValueError(
                "uplift: channels, patch and convs must be >= 1 and noise >= 0, "
                f"got {channels}, {patch}, {convs} and {noise}"
            )
        self.channels, self.patch, self.shares_encoder = channels, patch, shares_encoder
        self.noise, self.noise_scale, self.factor = noise, noise_scale, 2 ** (len(decoder) - 1)
        self.encoder, self.decoder = nn.ModuleDict(), nn.ModuleDict()
        width = 3
        for i, widths in enumerate(encoder):
            if i > 0 and encoder_step != "none":
                self.encoder[f"down_{i}"] = EncoderStep(width, encoder_step, adds_smaller)
            self.encoder[f"block_{i}"] = uplift_convs(width, widths, 1, norm)
            width = widths[-1]
        coarse, width = width, channels
        for i, widths in enumerate(decoder):
            if i > 0:
                self.decoder[f"up_{i}"] = nn.Sequential(OrderedDict(up=nn.ConvTranspose2d(width, width, 2, stride=2)))
            self.decoder[f"block_{i}"] = uplift_convs(width + encoder[-1 - i][-1] + noise, widths, convs, norm)
            width = widths[-1]
        self.attender = None if offsets is None else LocalAttender(width, offsets, weights=weights)
        if offsets is None:
            self.decoder["outc"] = nn.Conv2d(width, channels, 1)
        self.refiner = self.ref_outc = None
        if refiner:
            self.refiner = uplift_convs(channels + coarse + noise, refiner, 1, norm)
            self.ref_outc = nn.Conv2d(refiner[-1], channels, 1)

    @classmethod
    def for_vae(cls, **options) -> "UPLiFT":
        """For the latents of Stable Diffusion 1.5; options replace what differs."""
        encoder = tuple((width, width) for width in (64, 128, 256, 512, 512))
        parts = dict(encoder=encoder, decoder=((512,), (512, 512)), convs=1, refiner=(512,) * 12)
        return cls(**(dict(channels=4, patch=8, norm="layer", noise=4) | parts | options))

    def guides(self, image: Tensor) -> list[Tensor]:
        """What the encoder's groups give, the last one first."""
        if self.patch == 14:
            sizes = [size * 16 // 14 for size in image.shape[2:]]
            image = F.interpolate(image, size=sizes, mode="bilinear", align_corners=False)
        x, all_groups = image.contiguous(memory_format=torch.channels_last), []
        for name, part in self.encoder.items():
            x = part(x)
            if name.startswith("block"):
                all_groups.insert(0, x)
        return all_groups

    def finer(self, x: Tensor, guides: list[Tensor], generator: torch.Generator | None) -> Tensor:
        """One iteration."""

        def joined(y, guide):
            parts = [y, nearest(guide, y)]
            if self.noise > 0:
                shape = (len(y), self.noise, *y.shape[2:])
                drawn = y.new_zeros(shape) if generator is None else torch.randn(shape, generator=generator).to(y)
                parts.append(self.noise_scale * drawn)
            return torch.cat(parts, 1)

        y, doublings = self.decoder["block_0"](joined(x, guides[0])), self.factor.bit_length() - 1
        for i in range(1, doublings + 1):
            larger = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
            y = self.decoder[f"block_{i}"](joined(add_channels(self.decoder[f"up_{i}"](y), larger), guides[i]))
        y = add_channels(self.decoder["outc"](y), y) if self.attender is None else self.attender(y, x)
        return y if self.refiner is None else self.ref_outc(self.refiner(joined(y, guides[0])))

    def steps(self, image: Tensor, features: Tensor, iterations: int = 1, generator: torch.Generator | None = None) -> list[Tensor]:
        """The result of every iteration.  generator: what noise is drawn from; None: it is zero."""
        if iterations < 1:
            raise ValueError(f"uplift: iterations must be >= 1, got {iterations}")
        if features.dim() != 4 or features.shape[1] != self.channels:
            raise ValueError(f"uplift: features must be [B, {self.channels}, H, W], got {list(features.shape)}")
        wanted = [len(features), 3, *(self.patch * size for size in features.shape[2:])]
        if list(image.shape) != wanted:
            raise ValueError(f"uplift: the image must be {wanted} ({self.patch} pixels a token), got {list(image.shape)}")
        x, all_steps, guides = features.contiguous(memory_format=torch.channels_last), [], None
        for i in range(iterations):
            if i == 0:
                guides = self.guides(image)
            elif not self.shares_encoder:
                guides = self.guides(F.interpolate(image, scale_factor=self.factor**i, mode="bilinear", align_corners=False))
            x = self.finer(x, guides, generator)
            all_steps.append(x)
        return all_steps

    def forward(
        self,
        image: Tensor,
        features: Tensor,
        iterations: int = 1,
        *,
        size: tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The last of steps(..); size: its rows and columns, by bilinear means."""
        last = self.steps(image, features, iterations, generator)[-1]
        return last if size is None else F.interpolate(last, size=size, mode="bilinear", align_corners=False, antialias=True)
