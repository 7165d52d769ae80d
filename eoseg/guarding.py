"""What ends a run, saves it in between, or makes it need less memory."""

import time

import torch

from eoseg import runstate
from eoseg.errors import SetupError, listing

SAVE_EVERY = 600  # seconds between saves within an epoch


def fitting(run, what, compute):
    """What `compute` returns, which sends a batch through the network in parts of `getattr(run, what)` patches; smaller ones where memory does not suffice.

    Forward and backward are covered; what else may fill a GPU, the first step of the optimiser say, is not.

    Args:
        what: part, in training, where two patches are the least, as batch normalisation needs them; or judged_part.
    """
    while True:
        try:
            return compute()
        except torch.OutOfMemoryError:
            run.optimizer.zero_grad(set_to_none=True)
        smaller(run, what)  # here, where the error no longer holds on to what the network had computed


def smaller(run, what):
    """Halve the parts in which batches go through the network from now on.

    Raises:
        SetupError: the smallest do not fit either.
    """
    config, size = run.config, getattr(run, what)
    least = 2 if what == "part" else 1
    if size <= least:
        raise SetupError(f"--batch_size {config.batch_size}: not even {size} patch{'es' * (size > 1)} fit the memory of {run.device} with --model {config.model_name}; "
                         "give a smaller --patch_size, a smaller encoder, or --use_amp.")
    setattr(run, what, max(least, size // 2))
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    where = "" if what == "part" else " in validation"
    print(f"note: --batch_size {config.batch_size}: does not fit the memory of {run.device}{where}; it is computed in parts of {getattr(run, what)}, which add up", flush=True)


def heed(run, step=None, loader=None):
    """Between two batches: end the run where a signal asked for it, and save now and then in a long epoch."""
    run.behind.check()
    if run.stop.asked or time.monotonic() - run.saved > SAVE_EVERY:
        check_finite(run, step, loader)
        run.behind.wait()
        runstate.save(run)
    if run.stop.asked:
        run.behind.wait()
        run.stop.leave_if_asked(f"stopped after step {run.step} of epoch {run.epoch + 1}; all is saved, --resume goes on from there")


def check_finite(run, step, loader):
    """Raises SetupError, naming the batch's files, when a loss was not finite and no gradient scaler can mend it."""
    if step is None or torch.isfinite(step[0]) or (run.scaler.is_enabled() and run.scaler.get_scale() > 1):
        return
    raise diverged(run, f"the loss of the batch {listing(loader.names(step[1]), 8)}")


def diverged(run, what):
    """The SetupError of a run that has come to numbers that are none."""
    raw = "or have the bands scaled: --normalization none leaves them as they are" if run.about["normalization"]["kind"] == "none" else "a tenth, say"
    return SetupError(f"--learning_rate {run.config.learning_rate:g}: {what} is not finite in epoch {run.epoch + 1}; the run has diverged, "
                      f"lower the rate ({raw})." + (" The checkpoints of the epochs before are whole." if run.epoch else ""))
