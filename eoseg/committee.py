"""Several answers to one tile, of networks and of views of it, become one; and how far they disagree."""

import math

import torch

from eoseg.deciding import rounded

VIEWS = {  # quarter turns, and whether the tile is flipped before them
    "none": [(0, False)],
    "flips": [(0, False), (0, True), (2, True), (2, False)],  # as it is, left to right, upside down, both
    "d4": [(turns, flip) for flip in (False, True) for turns in range(4)],  # all eight symmetries of a square
}


def answers_of(network, tta):
    """How many answers are averaged."""
    return len(network.members) * len(VIEWS[tta])


def seen(tiles, turns, flip):
    """Tiles (..., H, W) as a view shows them."""
    tiles = tiles.flip(-1) if flip else tiles
    return torch.rot90(tiles, turns, (-2, -1)) if turns else tiles  # a turn by nothing would copy, and forget channels-last


def seen_back(tiles, turns, flip):
    """Undo `seen`."""
    tiles = torch.rot90(tiles, -turns, (-2, -1)) if turns else tiles
    return tiles.flip(-1) if flip else tiles


@torch.inference_mode()
def answer(network, tiles_of, tta="none", disagreement=False):
    """The mean probabilities of all members on all views of some tiles.

    Args:
        network: network.Network. tiles_of: gives tiles (N, B, H, W) as one member wants them. tta: of VIEWS.
        disagreement: add one channel, the mean of the answers' entropies.
    Returns:
        (N, C or C + 1, H, W) float32 on the device, multiples of 2^-12.
    """
    total, count = None, answers_of(network, tta)
    for one in network.members:
        tiles = tiles_of(one)
        for view in VIEWS[tta]:
            found = seen_back(one.probabilities(seen(tiles, *view)), *view)
            if disagreement:
                found = torch.cat([found, entropy(found, 1)], 1)
            total = found if total is None else total.add_(found)
    return total if count == 1 else rounded(total.div_(count))


def entropy(probability, dim):
    """Shannon entropy over the classes along `dim`, which is kept with length 1: 0 (sure) to 1 (all alike). One channel is the probability of the second of two classes."""
    count = probability.shape[dim]
    if count == 1:
        return (torch.special.entr(probability) + torch.special.entr(1 - probability)).div_(math.log(2))
    return torch.special.entr(probability).sum(dim, keepdim=True).div_(math.log(count))
