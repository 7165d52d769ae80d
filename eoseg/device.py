"""Where to compute, and in which precision."""

import torch

from eoseg.errors import SetupError


def choose_device(wanted):
    """The device `--device` means; `auto` is CUDA when there is one.

    Raises:
        SetupError: it is not there. There is no silent fall-back.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise SetupError(f"--device {wanted}: no such kind of device; write auto, cpu, cuda, cuda:1 or mps.")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise SetupError(f"--device {wanted}: this machine offers {torch.cuda.device_count()} CUDA devices to torch; use --device auto or cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SetupError("--device mps: not available here; use --device auto or cpu.")
    return device


def amp_settings(use_amp, device):
    """Mixed precision for `device`.

    Returns:
        the type to autocast to, or None for float32; and a line that says so.
    """
    if not use_amp:
        return None, "float32"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "bfloat16 autocast"
        return torch.float16, "float16 autocast with gradient scaling"
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    if device.type == "cpu" and fast():
        return torch.bfloat16, "bfloat16 autocast"
    return None, "float32 (--use_amp: this device has no fast bfloat16)"


def autocast(device, dtype):
    """The context a forward pass runs in; `dtype` None is float32."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)
