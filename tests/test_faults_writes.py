"""Every kind of write of every script fails in turn, on a disk that is full or hiccups once: refused and done again, or done right all the same."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs LD_PRELOAD and /proc, as Linux has them"),
              pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler (cc)")]
MORE = {"extract": 10, "grid": 0, "train": 10, "kfold": 0, "evaluate": 0, "predict": 10, "predict_many": 0}  # calls that fail beside the first of each kind


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    made = tmp_path_factory.mktemp("library") / "failing_writes.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", made, ROOT / "tests" / "failing_writes.c", "-ldl"], check=True)
    return made


def suffered(library, case, folder, more=0):
    """Run the driver on a case: (exit status, what it said)."""
    words = [sys.executable, ROOT / "tests" / "failing_writes.py", case, folder, str(more)]
    env = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True) as driver:
        try:
            said, _ = driver.communicate(timeout=1200)
        except BaseException:
            os.killpg(driver.pid, signal.SIGKILL)  # it has runs of its own
            raise
    return driver.returncode, said


@pytest.mark.parametrize("case", MORE)
def test_whichever_write_fails_nothing_is_lost_or_wrong(library, tmp_path, case):
    status, said = suffered(library, case, tmp_path / "case", MORE[case])
    assert status == 0, said


def test_a_careless_script_is_found_out(library, tmp_path):
    status, said = suffered(library, "careless", tmp_path / "case")
    assert status == 1 and said.count("exit status 0, AssertionError: other than undisturbed") == 3, said  # Python itself writes once more when it closes the file
