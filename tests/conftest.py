"""Every test runs without a network, with a data cache of its own and on one CPU thread per worker.

The book's real data are used where LLMS_FROM_SCRATCH_MIRROR names a folder that has them; tests
that need them are skipped otherwise, with the reason.
"""

import os
import runpy
import signal
import tempfile
import threading
from pathlib import Path

import hypothesis
import pytest
from progress import Progress

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = Path(__file__).parent / "offline"
MIRROR = os.environ.get("LLMS_FROM_SCRATCH_MIRROR", "")

# For this process, and for the processes that tests start
runpy.run_path(str(OFFLINE / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(OFFLINE), os.environ.get("PYTHONPATH")])
)
# The reader's own cache, remembered for the processes that inherit the next line
os.environ.setdefault(
    "LLMS_FROM_SCRATCH_READERS_CACHE", os.environ.get("LLMS_FROM_SCRATCH_CACHE", "")
)
os.environ["LLMS_FROM_SCRATCH_CACHE"] = tempfile.mkdtemp(prefix="llms-from-scratch-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # parallel processes take no time by waiting
if "PYTEST_XDIST_WORKER" in os.environ:  # kernels and scripts share the cores with other workers
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "agg"
if MIRROR and "://" not in MIRROR:
    os.environ["LLMS_FROM_SCRATCH_MIRROR"] = str(Path(MIRROR).resolve())

# A shell lets its background jobs ignore Ctrl-C, and they pass that on to the processes they start
in_main_thread = threading.current_thread() is threading.main_thread()
if in_main_thread and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is slow, not wrong: an example may take as long as its whole test may
hypothesis.settings.register_profile("any-machine", deadline=None)
hypothesis.settings.load_profile("any-machine")


@pytest.hookimpl(trylast=True)  # when there is a terminal reporter
def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # not in a worker
        terminal = config.pluginmanager.get_plugin("terminalreporter")
        config.pluginmanager.register(Progress(terminal))


def pytest_collection_modifyitems(items):
    import torch

    for item in items:
        if "real_data" in item.keywords and not MIRROR:
            item.add_marker(pytest.mark.skip(reason="set LLMS_FROM_SCRATCH_MIRROR to real data"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter):
    world = f"the book's real data from {MIRROR}" if MIRROR else "bundled samples only"
    terminalreporter.write_line(f"These tests ran without a network, with {world}.")


@pytest.fixture(autouse=True)
def single_thread():
    """Small tensors gain nothing from threads, and parallel test workers would fight for cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def the_verdict() -> str:
    """The text of chapters 2 to 5. Tests that use it are marked ``real_data``."""
    from llms_from_scratch.data import fetch

    return fetch("the-verdict", allow_sample=False).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2's GGUF file from the reader's cache, mirror or packages; never a download."""
    from llms_from_scratch.data import cached_path, find_asset
    from llms_from_scratch.data.package_file import installed_file

    asset = find_asset("smollm2-135m-instruct/model.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMS_FROM_SCRATCH_CACHE", os.environ["LLMS_FROM_SCRATCH_READERS_CACHE"])
        places = [cached_path(asset), Path(MIRROR, asset.folder, asset.file_name)]
    for path in [*places, installed_file(asset.packages[0])]:
        if path and path.is_file():
            return path
    pytest.skip("SmolLM2 is not here: llms-from-scratch data smollm2 --fetch")
