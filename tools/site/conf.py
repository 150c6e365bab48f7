"""How Sphinx renders the pages that ``tools/build_site.py`` collects."""

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = "Build a Large Language Model from Scratch: the code"
author = "the contributors of this repository"
extensions = ["myst_nb", "sphinx_copybutton"]
exclude_patterns = ["_*"]

nb_execution_mode = "off"  # notebooks are stored with their outputs, and tests run them
nb_ipywidgets_js = {}
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = "LLMs from scratch"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
html_math_renderer = "mathml"
suppress_warnings = ["misc.highlighting_failure", "myst.header"]


def write_mathml(writer, node) -> None:
    """Formulas as MathML, which browsers draw themselves, without a script from elsewhere."""
    display = "block" if node.tagname == "math_block" else "inline"
    writer.body.append(convert(node.astext(), display=display))
    raise SkipNode


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
