"""A script's ``--help`` at once: the libraries that its work needs are not loaded for it."""

import importlib.machinery
import sys
from pathlib import Path
from types import FunctionType, ModuleType

# Rooms in which options are defined; what they import is skipped like anything else
ROOMS_WITH_OPTIONS = (
    "llms_from_scratch.app",
    "llms_from_scratch.cache_memory",
    "llms_from_scratch.data",
    "llms_from_scratch.judge",
    "llms_from_scratch.llm_client",
    "llms_from_scratch.training",
)


def skip_imports_for_help() -> None:
    """If the command line asks for help, let the imports that follow load nothing.

    PyTorch alone takes a second or more, and no help text needs it. What a script imports after
    this call is an empty module whose every name is a placeholder, unless it is Python's own, lies
    beside the script, or may define options. Argparse then prints the help and ends the process.
    Without ``-h`` or ``--help`` nothing happens::

        if __name__ == "__main__":
            skip_imports_for_help()

        import torch  # and so on, as in any module

    From here on, Ctrl-C that nobody handles, during the imports say, ends without a traceback.
    """
    sys.excepthook = _show_error
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.meta_path.insert(0, _EmptyModules())


def _show_error(kind, error, traceback) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)


class _Placeholder:
    """Stands for any number, function, decorator or base class."""

    def __init__(self, *args, **options):
        pass

    def __call__(self, *args, **options):
        is_decorator = len(args) == 1 and isinstance(args[0], FunctionType)
        return args[0] if is_decorator else self

    def __getattr__(self, name: str):
        return self

    __getitem__ = __or__ = __ror__ = __mul__ = __call__

    def __iter__(self):
        return iter(())

    def __mro_entries__(self, bases):
        return (object,)


class _EmptyModule(ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Placeholder()


class _EmptyModules(importlib.machinery.PathFinder):
    """Finds an empty module for each name that is not wanted."""

    def find_spec(self, name, path=None, target=None):
        root = name.split(".")[0]
        is_wanted = name == "llms_from_scratch" or name.startswith(ROOMS_WITH_OPTIONS)
        is_beside = Path(sys.argv[0]).with_name(f"{root}.py").is_file()
        if is_wanted or is_beside or root in sys.stdlib_module_names:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _EmptyModule(spec.name)

    def exec_module(self, module):
        pass
