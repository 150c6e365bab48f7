"""Every definition of the book, once: ``llms_from_scratch.chNN`` holds what chapter NN adds."""

__version__ = "0.1.0"
