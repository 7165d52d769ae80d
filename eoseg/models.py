"""The networks. Each maps (N, in_channels, H, W) to logits (N, outputs, H, W); one output is binary."""

import difflib
import os
import re
import socket
import warnings
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from eoseg import checkpoint
from eoseg.config import NETWORKS
from eoseg.errors import SetupError, listing
from eoseg.tiles import next_multiple
from eoseg.unet import UNetDropout

SMP = {"unet": "unet", "unet++": "unetplusplus", "manet": "manet", "linknet": "linknet", "fpn": "fpn", "pspnet": "pspnet",
       "pan": "pan", "deeplabv3": "deeplabv3", "deeplabv3+": "deeplabv3plus"}
OWN_DROPOUT = {"fpn": "decoder_dropout", "pspnet": "psp_dropout", "deeplabv3": "decoder_aspp_dropout", "deeplabv3+": "decoder_aspp_dropout"}
OLD_ENCODERS = {"densenet264": "tu-densenet264d", "mobilenet_v3": "tu-mobilenetv3_large_100"}
STRIDE = 32  # of the deepest encoders; a tile is padded to a multiple of it
SMALLEST = {"pan": 128}  # its pyramid halves the deepest features three times more
PREFIXES = ("", "encoder.", "module.", "backbone.", "model.", "model.encoder.", "module.encoder.", "encoder.model.", "features.")


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
        raise SetupError(cannot_serve(config.model_name, config.encoder_name, error)) from None
    if shape != (count, config.num_classes, size, size):
        raise SetupError(cannot_serve(config.model_name, config.encoder_name, f"it returns {tuple(shape)} for {size} pixels"))


def tile_size(name, size):
    """The size a square of `size` pixels must be padded to for the network `name`."""
    return max(next_multiple(size, STRIDE), SMALLEST.get(name, STRIDE))


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


# ---------------------------------------------------------------- encoders: their weights, freezing


def encoder_of(net):
    """The part that pretrained weights belong to and that freezing holds still."""
    return net.backbone if isinstance(net, TorchvisionDeepLab) else net.encoder


def freeze_encoder(net, frozen):
    """Hold the encoder still, or let it go; the optimiser keeps its parameters either way."""
    for parameter in encoder_of(net).parameters():
        parameter.requires_grad_(not frozen)


def train_mode(net, frozen):
    """Training mode, but a frozen encoder in eval: else its batch statistics would drift although no weight moves."""
    net.train()
    if frozen:
        encoder_of(net).eval()


def load_encoder(net, config, in_channels):
    """Start the encoder from `config.weights_from`; the first convolution is fitted to the number of bands.

    Returns:
        a line that says what was loaded; None when nothing was asked for.
    Raises:
        SetupError: the weights are not to be had, or do not fit.
    """
    source = config.weights_from
    if source is None:
        return None
    title = encoder_title(config)
    state = imagenet_state(config) if source.lower() == "imagenet" else file_state(source)
    own = encoder_of(net).state_dict()
    fitted, left = fit_names(state, own)
    missing = sorted(name for name in own.keys() - fitted.keys() if not name.endswith("num_batches_tracked"))  # older files lack those
    parts = {part_of(name) for name in own}
    strange = [f"{name} missing" for name in missing] or [f"{name} left over" for name in left if part_of(name) in parts]
    if strange:
        raise SetupError(f"--encoder_weights {source}: does not fit {title} ({listing(strange, 3)}); name a file of the same encoder.")
    broken = [name for name, value in fitted.items() if not checkpoint.finite(value)]
    if broken:
        raise SetupError(f"--encoder_weights {source}: {listing(broken, 3)}: weights are not finite; get the file again.")
    for name, value in fitted.items():
        if value.shape != own[name].shape:
            fitted[name] = fit_bands(value, own[name].shape, source, name)
    nn.Module.load_state_dict(encoder_of(net), {**own, **fitted})  # some encoders of smp's have a load_state_dict of their own
    return f"encoder   {title} from {source}" + (f" ({len(state) - len(fitted)} weights beyond it left out)" if len(state) > len(fitted) else "")


def encoder_title(config):
    """What the encoder is called: the networks without a choice have one of their own."""
    return config.encoder_name if config.model_name in SMP else f"{config.model_name}'s encoder"


def fit_names(state, own):
    """The weights of `state` under the names of `own`: checkpoints put different words before them, and timm joins `stages.0` to `stages_0`.

    Returns:
        the weights, and the names that remain under the same prefix.
    """
    spelled, best, left = {name.replace(".", "_"): name for name in own}, {}, []
    for strip in PREFIXES:
        for add in ("", "model_"):
            places = {name: spelled.get(add + name.removeprefix(strip).replace(".", "_")) for name in state if name.startswith(strip)}
            found = {place: state[name] for name, place in places.items() if place}
            if len(found) > len(best):
                best, left = found, [name.removeprefix(strip) for name, place in places.items() if not place]
    return best, left


def part_of(name):
    """The first word of a weight's name, without numbers: `layer1` of layer1.2.bn1.bias, `stages` of model.stages_0.blocks.1.gamma."""
    return re.split(r"[._]\d|\.", name.removeprefix("model."))[0]


def fit_bands(weight, shape, source, name):
    """A first convolution over 3 bands for another number: its bands in turn, scaled so that the sum stays the same."""
    if weight.ndim != 4 or weight.shape[1] != 3 or (weight.shape[0], *weight.shape[2:]) != (shape[0], *shape[2:]):
        raise SetupError(f"--encoder_weights {source}: {name} is {tuple(weight.shape)}, the network's {tuple(shape)}; name a file of the same encoder.")
    return weight.repeat(1, -(-shape[1] // 3), 1, 1)[:, : shape[1]] * (3 / shape[1])


def file_state(path):
    """Weights from a local file: .safetensors, a state dict, or a checkpoint that holds one."""
    path = Path(path)
    if path.suffix == ".safetensors" and path.exists():
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError:
            raise SetupError(f"--encoder_weights {path}: is no .safetensors file, or is damaged; copy or download it again.") from None
    return checkpoint.load_state(path)


def imagenet_state(config):
    """The encoder's published ImageNet weights, from the local cache or the network."""
    if config.model_name == "unet-dropout":
        raise SetupError("--encoder_weights imagenet: unet-dropout has no published weights; leave the flag out, or choose another --model.")
    offline_if_unreachable()
    try:
        if config.model_name not in SMP:
            from torchvision.models import get_model_weights

            backbone = config.model_name.removeprefix("deeplabv3_")
            return get_model_weights(backbone).IMAGENET1K_V1.get_state_dict(progress=False)
        import segmentation_models_pytorch as smp

        return smp.encoders.get_encoder(resolve_encoder(config.encoder_name), in_channels=3, weights="imagenet").state_dict()
    except SetupError:
        raise
    except Exception as error:  # hub, urllib and smp each have their own
        raise SetupError(f"--pretrained: the ImageNet weights of {encoder_title(config)} cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:120]}); "
                         "start from scratch with --no_pretrained, or name a local file with --encoder_weights FILE.") from None


def offline_if_unreachable():
    """Without a network the hub's client would retry for half a minute before it looks into its cache."""
    if any(name in os.environ for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "HF_ENDPOINT")):
        return
    try:
        socket.create_connection(("huggingface.co", 443), timeout=5).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = True


def load_init_weights(net, path):
    """Start from an earlier model: all but the head, strictly.

    Returns:
        a line that says what was taken and what was left.
    """
    state, own = checkpoint.load(path)["model_state_dict"], net.state_dict()
    taken = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    head = ("segmentation_head.", "head.", "classifier.4.")
    strange = sorted(name for name in own.keys() ^ taken.keys() if not name.startswith(head))
    strange += sorted(name for name in state.keys() - own.keys() if not name.startswith(head))
    if strange:
        raise SetupError(f"--init_weights {path}: is of another network ({listing(strange, 3)}); give the same --model, --encoder_name and bands.")
    net.load_state_dict({**own, **taken})
    fresh = sorted(own.keys() - taken.keys())
    return f"start     {len(taken)} of {len(own)} weights from {path}" + (f"; fresh: {listing(fresh)}" if fresh else "")
