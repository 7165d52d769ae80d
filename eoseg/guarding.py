"""What ends a run, saves it in between, or makes it need less memory."""

import time

import torch

from eoseg import runstate
from eoseg.errors import SetupError, listing

SAVE_EVERY = 600  # seconds between saves within an epoch


def fitting(run, compute):
    """What `compute` returns, which sends a batch through the network in `run.shares` parts; more parts where memory does not suffice."""
    while True:
        try:
            return compute()
        except torch.OutOfMemoryError:
            run.optimizer.zero_grad(set_to_none=True)
        smaller(run)  # here, where the error no longer holds on to what the network had computed


def smaller(run):
    """Send batches through the network in twice as many parts from now on.

    Raises:
        SetupError: parts of two patches do not fit either.
    """
    config = run.config
    if run.shares * 2 > config.batch_size // 2:
        raise SetupError(f"--batch_size {config.batch_size}: not even {min(config.batch_size, 2)} patches fit the memory of {run.device} with --model {config.model_name}; "
                         "give a smaller --patch_size, a smaller encoder, or --use_amp.")
    run.shares *= 2
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    print(f"note: --batch_size {config.batch_size}: does not fit the memory of {run.device}; it is computed in {run.shares} parts, which add up", flush=True)


def heed(run, step=None, loader=None):
    """Between two batches: end the run where a signal asked for it, and save now and then in a long epoch."""
    if run.stop.asked or time.monotonic() - run.saved > SAVE_EVERY:
        check_finite(run, step, loader)
        run.behind.wait()
        runstate.save(run)
    if run.stop.asked:
        run.behind.wait()
        run.stop.leave(f"stopped after step {run.step} of epoch {run.epoch + 1}; all is saved, --resume goes on from there")


def check_finite(run, step, loader):
    """Raises SetupError, naming the batch's files, when a loss was not finite and no gradient scaler can mend it."""
    if step is None or torch.isfinite(step[0]) or (run.scaler.is_enabled() and run.scaler.get_scale() > 1):
        return
    raise diverged(run, f"the loss of the batch {listing(loader.names(step[1]), 8)}")


def diverged(run, what):
    return SetupError(f"--learning_rate {run.config.learning_rate:g}: {what} is not finite in epoch {run.epoch + 1}; the run has diverged, "
                      "lower the rate (a tenth, say)." + (" The checkpoints of the epochs before are whole." if run.epoch else ""))
