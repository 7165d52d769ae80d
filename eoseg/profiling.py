"""Where the time of an epoch goes: --profile."""

import os
import time

import torch

from eoseg import files

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # what traces for torch would print on stderr
WARM = 2  # steps before the trace begins
ROWS = 12  # of the table of operators


class Profile:
    """The seconds that one epoch spends on what, and a trace of some of its steps.

    Args:
        steps: to trace, after two that warm up. path: of the trace, which chrome://tracing and ui.perfetto.dev show.
    """

    def __init__(self, steps, path, device):
        self.steps, self.path, self.device = steps, path, device
        self.waited = self.worked = 0.0
        kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (device.type == "cuda")
        self.trace, self.traced = torch.profiler.profile(activities=kinds), 0

    def watch(self, batches):
        """Pass `batches` on; tell the time until each comes from that until the next is asked for."""
        before = self.now()
        for number, batch in enumerate(batches):
            came = self.now()
            if number == WARM:
                self.trace.start()
            yield batch
            self.traced += WARM <= number < WARM + self.steps
            if self.traced and number == WARM + self.steps - 1:
                self.trace.stop()
            done = self.now()
            self.waited, self.worked, before = self.waited + came - before, self.worked + done - came, done
        if 0 < self.traced < self.steps:
            self.trace.stop()

    def now(self):
        """The clock, when the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def tell(self, seconds):
        """Print where the `seconds` of the epoch went, and write the trace."""
        parts = {"waiting for patches": self.waited, "steps": self.worked, "validation and the rest": seconds - self.waited - self.worked}
        print("profile   " + ", ".join(f"{name} {part:.2f} s ({part / seconds:.0%})" for name, part in parts.items()))
        if not self.traced:
            return print(f"profile   no trace: the epoch has no more than {WARM} steps")
        with files.replacing(self.path) as part:
            self.trace.export_chrome_trace(str(part))
        by = f"self_{self.device.type}_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        print(self.trace.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=40))
        print(f"profile   wrote {self.path}, {self.traced} steps")
