"""A U-Net with dropout, from scratch: the network for those who have no pretrained weights and many bands.

Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation", arXiv:1505.04597, with
batch normalisation, padded convolutions, and dropout of whole channels after each block (Tompson et al. 2015).
"""

import torch
from torch import nn


def block(inputs, outputs, dropout):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
    )


class UNetDropout(nn.Module):
    """Maps (N, in_channels, H, W) to logits (N, classes, H, W); H and W multiples of 16.

    Args:
        dropout: probability of a channel to be dropped after each block, 0 to 1.
        width: channels of the first level; each of the four levels below has twice as many.
    """

    def __init__(self, in_channels=3, classes=5, dropout=0.3, width=32):
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.encoder = nn.ModuleList(block(i, o, dropout) for i, o in zip([in_channels, *widths], widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in widths[-2::-1])
        self.decoder = nn.ModuleList(block(2 * w, w, dropout) for w in widths[-2::-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        skips = []
        for level, down in enumerate(self.encoder):
            x = down(nn.functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.decoder, skips[-2::-1]):
            x = join(torch.cat([up(x), skip], 1))
        return self.head(x)
