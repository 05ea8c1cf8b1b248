"""The networks of the reference study: HW5Net with a switch for each ingredient, and Net3."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradscope.errors import ModelError


class SkipBlock(nn.Module):
    """Two convolutions with an identity around them, of which each part can be left out.

    3x3 convolution, batch norm, ReLU; the same again where the width stays; then, to downsample,
    one 1x1 convolution of stride 2 that serves the branch and the identity alike; then the identity
    is added, doubled along the channels where the width doubles.

    As in the network that was published, a block that widens declares a second convolution and
    never calls it (the widths would not fit): its parameters stay without a gradient.

    Shapes:
        (images, in_channels, height, width) -> (images, out_channels, height, width), or
        (images, out_channels, height / 2, width / 2) when it downsamples.

    Raises:
        ModelError: the width neither stays nor doubles, or doubles in a block that downsamples.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        downsample: bool = False,
        skip: bool = True,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        if out_channels not in (in_channels, 2 * in_channels):
            raise ModelError(
                f"SkipBlock({in_channels}, {out_channels}): the width must stay or double; "
                f"valid: {in_channels}, {2 * in_channels}"
            )
        self.widens = out_channels != in_channels
        if self.widens and downsample:  # the one downsampler fits either the branch or the identity
            raise ModelError(
                f"SkipBlock({in_channels}, {out_channels}, downsample=True): a block that "
                f"downsamples keeps its width; valid: {in_channels}"
            )
        self.skip = skip

        def norm() -> nn.Module:
            return nn.BatchNorm2d(out_channels) if batch_norm else nn.Identity()

        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.bn1 = norm()
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.bn2 = norm()
        self.relu2 = nn.ReLU()
        self.downsampler = (
            nn.Conv2d(out_channels, out_channels, 1, stride=2) if downsample else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        identity = x
        out: Tensor = self.relu1(self.bn1(self.conv1(x)))
        if not self.widens:
            out = self.relu2(self.bn2(self.conv2(out)))
        if self.downsampler is not None:
            out = self.downsampler(out)
            identity = self.downsampler(identity)
        if not self.skip:
            return out
        if self.widens:
            identity = torch.cat((identity, identity), dim=1)
        return out + identity


class HW5Net(nn.Module):
    """A residual classifier of square images whose every ingredient can be switched off.

    As in the network that was published, a last downsampling block is declared and never called.

    Args:
        n_classes: width of the output.
        depth: 8 times the number of blocks per stage; a multiple of 8, at least 8.
        skip: add the identities.
        batch_norm: normalise after each 3x3 convolution of the blocks.
        shared_downsampler: one block halves the image both times (the network before its
            correction), not one block each.
        image_size: height and width of the images in pixels, a multiple of 8.

    Shapes:
        (images, 3, image_size, image_size) -> logits (images, n_classes).

    Raises:
        ModelError: depth or image_size is no multiple of 8, or the images have another size.
    """

    def __init__(
        self,
        n_classes: int = 5,
        *,
        depth: int = 32,
        skip: bool = True,
        batch_norm: bool = True,
        shared_downsampler: bool = False,
        image_size: int = 64,
    ) -> None:
        super().__init__()
        for name, value in (("depth", depth), ("image_size", image_size)):
            if value < 8 or value % 8:
                raise ModelError(f"HW5Net: {name}={value} must be a multiple of 8, for example 32")
        self.image_size = image_size
        per_stage = depth // 8
        before = per_stage // 4  # blocks of the first stage that work on the larger images

        def block(in_channels: int, out_channels: int, *, downsample: bool = False) -> SkipBlock:
            return SkipBlock(
                in_channels, out_channels, downsample=downsample, skip=skip, batch_norm=batch_norm
            )

        self.conv = nn.Conv2d(3, 64, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.stage1 = nn.Sequential(*(block(64, 64) for _ in range(before)))
        self.down1 = block(64, 64, downsample=True)
        self.stage2 = nn.Sequential(*(block(64, 64) for _ in range(per_stage - before)))
        self.down2 = self.down1 if shared_downsampler else block(64, 64, downsample=True)
        self.widen = block(64, 128)
        self.stage3 = nn.Sequential(*(block(128, 128) for _ in range(per_stage)))
        self.down3 = block(128, 128, downsample=True)  # never called, see the docstring
        self.fc1 = nn.Linear(128 * (image_size // 8) ** 2, 1000)
        self.relu_fc = nn.ReLU()
        self.fc2 = nn.Linear(1000, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits of a batch of images."""
        _check_size("HW5Net", x, self.image_size)
        x = self.pool(self.relu(self.conv(x)))
        x = self.down1(self.stage1(x))
        x = self.down2(self.stage2(x))
        x = self.stage3(self.widen(x))
        logits: Tensor = self.fc2(self.relu_fc(self.fc1(x.flatten(1))))
        return logits


class Net3(nn.Module):
    """The plain chain of twelve convolutions that HW5Net is compared with.

    Args:
        n_classes: width of the output.
        image_size: height and width of the images in pixels, at least 10.

    Shapes:
        (images, 3, image_size, image_size) -> logits (images, n_classes).

    Raises:
        ModelError: image_size is too small for two poolings, or the images have another size.
    """

    def __init__(self, n_classes: int = 5, *, image_size: int = 64) -> None:
        super().__init__()
        left = ((image_size - 2) // 2 - 2) // 2  # two 3x3 convolutions without padding, two pools
        if left < 1:
            raise ModelError(f"Net3: image_size={image_size} is too small; valid: 10 and above")
        self.image_size = image_size
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        chain = [layer for _ in range(10) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())]
        self.chain = nn.Sequential(*chain)
        self.fc1 = nn.Linear(32 * left**2, 64)
        self.relu_fc = nn.ReLU()
        self.fc2 = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits of a batch of images."""
        _check_size("Net3", x, self.image_size)
        x = self.chain(self.stem(x))
        logits: Tensor = self.fc2(self.relu_fc(self.fc1(x.flatten(1))))
        return logits


def _check_size(name: str, images: Tensor, size: int) -> None:
    if tuple(images.shape[1:]) != (3, size, size):
        raise ModelError(
            f"{name} takes images of shape (3, {size}, {size}), got {tuple(images.shape[1:])}; "
            f"set the model's image_size={images.shape[-1]} or resize the images to {size}"
        )
