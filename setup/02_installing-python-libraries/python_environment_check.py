"""Is this machine ready for the book? A line per check: [OK], [FAIL], or [--] if it is optional.

    python python_environment_check.py              # everything, some seconds
    python python_environment_check.py --offline    # without asking the data sources

It needs nothing but Python itself, and says what is missing. Exit status: 0 if nothing failed.
"""

import argparse
import importlib
import os
import platform
import re
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path

MINIMUM_PYTHON = (3, 10)
MINIMUM_DISK_GB = 5  # libraries, and the weights of the smallest GPT-2
MINIMUM_MEMORY_GB = 4
OPTIONAL = {"tensorflow"}  # what no notebook needs
OTHER_NAMES = {"tensorflow": ("tensorflow-cpu", "tensorflow-macos")}  # also good
MARKS = {True: "OK", False: "FAIL", None: "--"}

failures = 0


def report(good: bool | None, text: str) -> None:
    """Print one line; None stands for an optional thing that is not there."""
    global failures
    failures += good is False
    print(f"[{MARKS[good]}] {text}")


def check_python() -> None:
    version = platform.python_version()
    wanted = ".".join(map(str, MINIMUM_PYTHON))
    if sys.version_info >= MINIMUM_PYTHON:
        report(True, f"Your Python version is {version}")
    else:
        report(False, f"Your Python version is {version}, please install {wanted} or newer")


def get_requirements_dict() -> dict[str, str]:
    """Names and version limits of requirements.txt, e.g. {"torch": ">=2.6"}.

    The file is looked for two folders up, where it lies in the repository, and beside this script.
    Lines whose condition (``; python_version < "3.14"``) does not hold here are left out.
    """
    here = Path(__file__).resolve().parent
    candidates = [here.parent.parent / "requirements.txt", here / "requirements.txt"]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no requirements.txt, looked at {candidates[0]}")
    requirement = importlib.import_module("packaging.requirements").Requirement
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line := line.partition("#")[0].strip():
            parsed = requirement(line)
            if parsed.marker is None or parsed.marker.evaluate():
                found[parsed.name.lower()] = str(parsed.specifier)
    return found


def get_packages(names) -> dict[str, str]:
    """The installed version of each package, "0.0" for those that are not installed."""
    versions = {}
    for name in names:
        versions[name.lower()] = "0.0"
        for candidate in (name, *OTHER_NAMES.get(name.lower(), ())):
            try:
                versions[name.lower()] = metadata.version(candidate)
                break
            except metadata.PackageNotFoundError:
                continue
    return versions


def check_packages(requirements: dict[str, str]) -> None:
    """One line per package: installed and new enough, or what to do."""
    specifiers = importlib.import_module("packaging.specifiers").SpecifierSet
    for name, version in get_packages(requirements).items():
        wanted = requirements[name]
        if version == "0.0":
            what = f"{name} is not installed, please install {name}{wanted}"
            report(None if name in OPTIONAL else False, what)
        elif specifiers(wanted).contains(version, prereleases=True):
            report(True, f"{name} {version}")
        else:
            report(False, f"{name} {version}, please install {name}{wanted}")


def check_package() -> None:
    """The package of this repository, from which the notebooks import."""
    try:
        report(True, f"llms-from-scratch {metadata.version('llms-from-scratch')}")
    except metadata.PackageNotFoundError:
        what = "llms-from-scratch is not installed; in the repository's folder: pip install -e ."
        report(False, what)


def check_devices() -> None:
    """A product of two matrices and its gradient on each device, compared with the CPU's."""
    try:
        import torch
    except ImportError as error:
        report(False, f"torch cannot be imported: {error}")
        return
    names = {"cpu": f"CPU, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        names[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    if torch.backends.mps.is_available():
        names["mps"] = "GPU of an Apple computer"
    torch.manual_seed(0)
    left, right = torch.randn(512, 512), torch.randn(512, 512)
    wanted = (left @ right).square().mean()
    for device, description in names.items():
        try:
            weight = right.to(device).requires_grad_()
            started = time.perf_counter()
            loss = (left.to(device) @ weight).square().mean()
            loss.backward()
            difference = abs(loss.item() / wanted.item() - 1)
            seconds = time.perf_counter() - started
        except RuntimeError as error:
            report(False, f"device {device} ({description}): {str(error).splitlines()[0]}")
            continue
        good = difference < 1e-2 and bool(weight.grad.isfinite().all())
        text = f"device {device} ({description}): self-test in {seconds:.2f} s"
        report(good, text if good else f"{text}, result is off by {difference:.1%}")
    if "mps" not in names and len(names) == 1:
        report(None, "no GPU that PyTorch can use; every notebook runs on the CPU, too")


def memory_gb() -> float | None:
    """Free main memory, in GB, where the system tells; None elsewhere."""
    try:
        return importlib.import_module("psutil").virtual_memory().available / 1e9
    except ImportError:
        pass
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="utf-8"))
        return int(found[1]) * 1024 / 1e9 if found else None
    return None


def check_space() -> None:
    disk = shutil.disk_usage(Path(__file__).resolve().parent).free / 1e9
    report(disk >= MINIMUM_DISK_GB, f"{disk:.0f} GB of free disk space ({MINIMUM_DISK_GB} needed)")
    memory = memory_gb()
    if memory is None:
        report(None, "free memory is not known (pip install psutil shows it)")
    else:
        what = f"{memory:.0f} GB of free memory ({MINIMUM_MEMORY_GB} needed)"
        report(memory >= MINIMUM_MEMORY_GB, what)


def check_sources(timeout: float = 4.0) -> None:
    """Can texts and weights be downloaded? What to do where they can not."""
    advice = "bundled samples are used instead; see setup/README.md for mirrors"
    mirror = os.environ.get("LLMS_FROM_SCRATCH_MIRROR")
    if mirror and not mirror.startswith(("http://", "https://")):
        report(Path(mirror).is_dir(), f"LLMS_FROM_SCRATCH_MIRROR is the folder {mirror}")
    if os.environ.get("LLMS_FROM_SCRATCH_OFFLINE"):
        report(None, f"LLMS_FROM_SCRATCH_OFFLINE is set, nothing is downloaded: {advice}")
        return
    try:
        import requests

        from llms_from_scratch.data.manifest import ASSETS, HUB
    except ImportError:
        report(None, "data sources are checked once the packages above are installed")
        return
    one_per_host = {}
    for asset in ASSETS.values():
        for url in asset.urls:
            url = url.replace(HUB, os.environ.get("HF_ENDPOINT", HUB))
            one_per_host.setdefault(url.split("/")[2], url)
    for host, url in one_per_host.items():
        try:
            requests.head(url, timeout=timeout, allow_redirects=True).raise_for_status()
            report(True, f"{host} can be reached")
        except (requests.RequestException, OSError) as error:
            report(None, f"{host} cannot be reached ({type(error).__name__}): {advice}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--offline", action="store_true", help="do not ask the data sources")
    args = parser.parse_args()
    check_python()
    try:
        check_packages(get_requirements_dict())
    except ImportError:
        report(False, "the packages cannot be checked; please run: pip install -r requirements.txt")
    check_package()
    check_devices()
    check_space()
    if not args.offline:
        check_sources()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
