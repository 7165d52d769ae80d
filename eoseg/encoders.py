"""Where a network's weights begin: ImageNet's, a file's, or those of an earlier model."""

import functools
import os
import re
import socket
import warnings
from pathlib import Path

from torch import nn

from eoseg import checkpoint
from eoseg.errors import SetupError, listing
from eoseg.models import SMP, encoder_of, resolve_encoder

PREFIXES = ("", "encoder.", "module.", "backbone.", "model.", "model.encoder.", "module.encoder.", "encoder.model.", "features.")


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
    title = title_of(config.model_name, config.encoder_name)
    state = {name: value for name, value in state_of(config).items() if isinstance(name, str)}
    own = encoder_of(net).state_dict()
    fitted, left = fit_names(state, own)
    missing = sorted(name for name in own.keys() - fitted.keys() if not name.endswith("num_batches_tracked"))  # older files lack those
    parts = {part_of(name) for name in own}
    strange = [f"{name} missing" for name in missing] or [f"{name} left over" for name in left if part_of(name) in parts]
    if strange:
        raise SetupError(f"--encoder_weights {source}: does not fit {title} ({listing(strange, 3)}); name a file of the same encoder.")
    broken = [name for name, value in fitted.items() if own[name].is_floating_point() and not (value.is_floating_point() and checkpoint.finite(value))]
    if broken:
        raise SetupError(f"--encoder_weights {source}: {listing(broken, 3)}: weights are not finite, or no real numbers; get the file again.")
    for name, value in fitted.items():
        if value.shape != own[name].shape:
            fitted[name] = fit_bands(value, own[name].shape, source, name)
    nn.Module.load_state_dict(encoder_of(net), {**own, **fitted})  # some encoders of smp's have a load_state_dict of their own
    return f"encoder   {title} from {source}" + (f" ({len(state) - len(fitted)} weights beyond it left out)" if len(state) > len(fitted) else "")


def check_weights(config):
    """Raises SetupError when the weights that a run begins with are not to be had: said before any patch is looked at."""
    if config.init_weights and not Path(config.init_weights).is_file():
        raise SetupError(f"--init_weights {config.init_weights}: no such checkpoint; name one of an earlier run.")
    if config.weights_from and config.batch_size > 1:  # of 1, the size of the patches decides first whether the network can be trained
        state_of(config)


def state_of(config):
    """The weights that `config.weights_from` means, by name."""
    source = config.weights_from
    return imagenet_state(config.model_name, config.encoder_name) if source.lower() == "imagenet" else file_state(source)


def title_of(model_name, encoder_name):
    """What the encoder is called: the networks without a choice have one of their own."""
    return encoder_name if model_name in SMP else f"{model_name}'s encoder"


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
    """A first convolution over 3 bands for another number: the sum of its bands for one, else its bands in turn, times 3 / bands."""
    if weight.ndim != 4 or weight.shape[1] != 3 or (weight.shape[0], *weight.shape[2:]) != (shape[0], *shape[2:]):
        raise SetupError(f"--encoder_weights {source}: {name} is {tuple(weight.shape)}, the network's {tuple(shape)}; name a file of the same encoder.")
    if shape[1] == 1:
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, -(-shape[1] // 3), 1, 1)[:, : shape[1]] * (3 / shape[1])


def file_state(path):
    """Weights from a local file: .safetensors, a state dict, or a checkpoint that holds one."""
    path = Path(path)
    if not path.is_file():
        raise SetupError(f"--encoder_weights {path}: no such file; write imagenet, none, or the path of a file.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError:
            raise SetupError(f"--encoder_weights {path}: is no .safetensors file, or is damaged; copy or download it again.") from None
    return checkpoint.load_state(path)


@functools.lru_cache(maxsize=1)
def imagenet_state(model_name, encoder_name):
    """The published ImageNet weights of a network's encoder, from the local cache or the network."""
    if model_name == "unet-dropout":
        raise SetupError("--encoder_weights imagenet: unet-dropout has no published weights; leave the flag out, or choose another --model.")
    offline_if_unreachable()
    try:
        if model_name not in SMP:
            from torchvision.models import get_model_weights

            backbone = model_name.removeprefix("deeplabv3_")
            return get_model_weights(backbone).IMAGENET1K_V1.get_state_dict(progress=False)
        import segmentation_models_pytorch as smp

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return smp.encoders.get_encoder(resolve_encoder(encoder_name), in_channels=3, weights="imagenet").state_dict()
    except SetupError:
        raise
    except Exception as error:  # hub, urllib and smp each have their own
        raise SetupError(f"--pretrained: the ImageNet weights of {title_of(model_name, encoder_name)} cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:120]}); "
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
    checkpoint.load_weights(net, {**own, **taken}, path)
    fresh = sorted(own.keys() - taken.keys())
    return f"start     {len(taken)} of {len(own)} weights from {path}" + (f"; fresh: {listing(fresh)}" if fresh else "")


def usual_normalization(config):
    """How band values are scaled when --normalization is auto: as an earlier model's, by mean and deviation for an encoder that was
    trained so (a percentile stretch would make it useless), else by percentiles.
    """
    if config.init_weights:
        before = checkpoint.load(config.init_weights)["normalization"]
        return before["kind"] if before else "percentile"
    return "zscore" if config.weights_from else "percentile"
