"""Where to compute, and in which precision."""

from textwrap import shorten

import numpy as np
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
    if device is None or device.type not in ("cpu", "cuda", "mps") or device.type != "cuda" and device.index:
        raise SetupError(f"--device {wanted}: no such kind of device; write auto, cpu, cuda, cuda:1 or mps.")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise SetupError(f"--device {wanted}: this machine offers {torch.cuda.device_count()} CUDA devices to torch; use --device auto or cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SetupError("--device mps: not available here; use --device auto or cpu.")
    return device


def amp_settings(use_amp, device, wanted="auto"):
    """Mixed precision for `device`.

    Args:
        wanted: auto, bf16 or fp16. What is asked for by name is done, be it slow.
    Returns:
        the type to autocast to, or None for float32; and a line that says so.
    """
    if not use_amp:
        return None, "float32"
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False) if device.type == "cpu" else lambda: torch.cuda.is_bf16_supported(including_emulation=False)
    quick = device.type in ("cpu", "cuda") and fast()
    if wanted == "bf16" or wanted == "auto" and quick:
        return torch.bfloat16, "bfloat16 autocast" + ("" if quick else " (this device has no fast bfloat16)")
    if wanted == "fp16" or device.type == "cuda":
        return torch.float16, "float16 autocast with gradient scaling" + ("" if device.type == "cuda" else " (this device has no fast float16)")
    return None, "float32 (--use_amp: this device has no fast bfloat16)"


def autocast(device, dtype):
    """The context a forward pass runs in; `dtype` None is float32."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def translate(net, device):
    """Have torch.compile translate `net` when it first runs; its weights keep their names.

    Returns:
        a line that says so, or why it goes on without: where no compiler works.
    """
    try:
        torch.compile(lambda x: (x * 2 + 1).relu())(torch.ones(4, device=device))
    except Exception as error:  # dynamo, inductor and triton each have their own
        return f"note: --compile: no working compiler here ({shorten(str(error), 90)}); the run goes on without"
    torch._dynamo.config.suppress_errors = True  # what cannot be translated runs as it is
    net.compile()
    return "compiled  by torch.compile; the first steps take minutes"


def seed_step(*key):
    """Seed torch for one step by whole numbers, so that dropout hangs on them alone: a run that goes on draws as one that never stopped."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
