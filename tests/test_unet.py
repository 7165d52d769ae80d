"""The U-Net from scratch."""

import pytest
import torch

from eoseg.unet import UNetDropout


@pytest.mark.parametrize("bands, classes, height, width", [(1, 1, 16, 16), (3, 5, 32, 48), (13, 2, 64, 16)])
def test_logits_have_the_size_of_the_image(bands, classes, height, width):
    net = UNetDropout(bands, classes, width=4).eval()
    assert net(torch.zeros(2, bands, height, width)).shape == (2, classes, height, width)


def test_dropout_takes_whole_channels_in_training_alone():
    torch.manual_seed(0)
    net, image = UNetDropout(3, 2, dropout=0.5, width=8), torch.randn(1, 3, 32, 32)
    first = net.train().encoder[0](image)
    dead = (first == 0).flatten(2).all(2)[0]
    assert 0 < dead.sum() < 8 and (first[:, ~dead] != 0).flatten(2).any(2).all()
    assert not torch.equal(net(image), net(image))
    net.eval()
    assert torch.equal(net(image), net(image))


def test_without_dropout_training_is_the_same_each_time():
    net, image = UNetDropout(3, 2, dropout=0.0, width=4).train(), torch.randn(2, 3, 16, 16)
    assert torch.equal(net(image), net(image))


def test_a_pixel_reaches_the_output_by_every_level():
    net = UNetDropout(1, 1, dropout=0.0, width=4).eval()
    image = torch.randn(1, 1, 64, 64, requires_grad=True)
    net(image)[0, 0, 33, 33].backward()
    touched = (image.grad[0, 0] != 0).nonzero()
    assert touched.min() < 8 and touched.max() > 56  # far beyond what 3 x 3 convolutions of one level see
    assert all((parameter.grad != 0).any() for name, parameter in net.named_parameters() if name.endswith("weight"))


def test_it_learns_which_side_is_bright():
    torch.manual_seed(0)
    net, image = UNetDropout(1, 2, dropout=0.0, width=4), torch.randn(4, 1, 16, 16)
    target = (image[:, 0] > 0).long()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(image), target).backward()
        optimizer.step()
    assert (net(image).argmax(1) == target).float().mean() > 0.97
