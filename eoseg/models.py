"""The networks. Each maps (N, in_channels, H, W) to logits (N, outputs, H, W); one output is binary."""

import difflib
import re
import warnings
from collections import OrderedDict

import torch
from torch import nn

from eoseg.config import NETWORKS
from eoseg.errors import SetupError
from eoseg.tiles import tile_size
from eoseg.unet import UNetDropout

SMP = {"unet": "unet", "unet++": "unetplusplus", "manet": "manet", "linknet": "linknet", "fpn": "fpn", "pspnet": "pspnet",
       "pan": "pan", "deeplabv3": "deeplabv3", "deeplabv3+": "deeplabv3plus"}
OWN_DROPOUT = {"fpn": "decoder_dropout", "pspnet": "psp_dropout", "deeplabv3": "decoder_aspp_dropout", "deeplabv3+": "decoder_aspp_dropout"}
PICKY = (RuntimeError, AssertionError, ValueError)  # what networks raise when a tile is not to their liking
OLD_ENCODERS = {"densenet264": "tu-densenet264d", "mobilenet_v3": "tu-mobilenetv3_large_100"}


def build_model(name, in_channels=3, outputs=5, encoder_name="resnet34", dropout_rate=0.3):
    """Make the network `name` with fresh weights.

    Raises:
        SetupError: no such network or encoder, or an encoder that cannot serve this network.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=3) or NETWORKS
        raise SetupError(f"--model {name}: no such network; did you mean {', '.join(near)}?")
    if name == "unet-dropout":
        return UNetDropout(in_channels, outputs, dropout_rate)
    if name not in SMP:
        return TorchvisionDeepLab(name, in_channels, outputs, dropout_rate)
    return smp_network(name, in_channels, outputs, encoder_name, dropout_rate)


def smp_network(name, in_channels, outputs, encoder_name, dropout_rate):
    """A network of segmentation-models-pytorch, with dropout before its head where its decoder has none of its own."""
    import segmentation_models_pytorch as smp

    encoder = resolve_encoder(encoder_name)
    own = {OWN_DROPOUT[name]: dropout_rate} if name in OWN_DROPOUT else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = smp.create_model(SMP[name], encoder_name=encoder, encoder_weights=None, in_channels=in_channels, classes=outputs, **own)
    except Exception as error:  # smp, timm and torch each raise their own kinds
        raise SetupError(cannot_serve(name, encoder, error)) from None
    if not own:
        layers = [("dropout", nn.Dropout2d(dropout_rate)), *net.segmentation_head.named_children()]
        net.segmentation_head = nn.Sequential(OrderedDict(layers))  # the others keep their names: older checkpoints load
    return net


def resolve_encoder(name):
    """The name smp knows an encoder by; older names are translated.

    Raises:
        SetupError: unknown; near names are suggested.
    """
    import segmentation_models_pytorch as smp
    import timm

    name = OLD_ENCODERS.get(name, name)
    if name in smp.encoders.encoders or (name.startswith("tu-") and timm.is_model(name[3:].split(".")[0])):
        return name
    known = [*smp.encoders.encoders, *(f"tu-{model}" for model in timm.list_models())]
    near = difflib.get_close_matches(name, known, n=4) or difflib.get_close_matches(f"tu-{name}", known, n=4) or ["resnet34", "efficientnet-b0", "tu-convnext_tiny"]
    raise SetupError(f"--encoder_name {name}: no such encoder; did you mean {', '.join(near)}?")


def cannot_serve(name, encoder, error):
    others = "resnet34, resnet50, efficientnet-b0 and mobilenet_v2 serve every network"
    return f"--encoder_name {encoder}: cannot serve --model {name} ({' '.join(str(error).split())[:160]}); {others}."


def check_model(config, in_channels=3):
    """Build the network and run it once, small and blind, so that what cannot work is said before any data is read."""
    net = build_model(config.model_name, in_channels, config.num_classes, config.encoder_name, config.dropout_rate)
    size = tile_size(config.model_name, config.patch_size or 64)
    count = 2 if config.batch_size > 1 else 1
    try:
        with torch.no_grad():
            shape = net.train()(torch.zeros(count, in_channels, size, size)).shape
    except Exception as error:
        if "more than 1 value per channel" in str(error):
            raise SetupError(f"--batch_size 1: {config.model_name} normalises over the batch and needs 2 patches or more; give --batch_size 2.") from None
        fixed = re.search(r"match model \((\d+)\)", str(error))  # timm's words for a transformer of one input size
        if fixed:
            raise SetupError(f"--encoder_name {config.encoder_name}: takes {fixed[1]} pixels and no others; give --patch_size {fixed[1]}, or another encoder.") from None
        raise SetupError(cannot_serve(config.model_name, config.encoder_name, error)) from None
    if shape != (count, config.num_classes, size, size):
        raise SetupError(cannot_serve(config.model_name, config.encoder_name, f"it returns {tuple(shape)} for {size} pixels"))


class TorchvisionDeepLab(nn.Module):
    """DeepLabV3 (Chen et al. 2017, arXiv:1706.05587) as torchvision has it, for any number of bands.

    Args:
        name: deeplabv3_resnet50 or deeplabv3_mobilenet_v3_large.
    """

    def __init__(self, name, in_channels, outputs, dropout_rate):
        super().__init__()
        from torchvision.models import segmentation

        net = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=outputs)
        self.backbone, self.classifier = net.backbone, net.classifier
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout_rate
        if in_channels != 3:
            owner, attribute = first_conv(self.backbone)
            old = getattr(owner, attribute)
            new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
            if isinstance(owner, nn.Sequential):
                owner[int(attribute)] = new
            else:
                setattr(owner, attribute, new)

    def forward(self, x):
        logits = self.classifier(self.backbone(x)["out"])
        return nn.functional.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)


def first_conv(net):
    """The module that holds the first convolution, and its name there."""
    path = next(name for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    owner, _, attribute = path.rpartition(".")
    return net.get_submodule(owner), attribute


def encoder_of(net):
    """The part that pretrained weights belong to and that freezing holds still."""
    return net.backbone if isinstance(net, TorchvisionDeepLab) else net.encoder
