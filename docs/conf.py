"""The site: Sphinx, with pages in Markdown (MyST). From the repository's root:

python -m sphinx -W -b html docs build/site
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ensemblead

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

project = "ensemblead"
author = "The ensemblead developers"
copyright = "The ensemblead developers, Apache-2.0"
release = ensemblead.__version__
html_title = f"ensemblead {release}"
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "generated"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4  # links to headings are those of the repository's own pages
# A single backtick in docstrings: a link where there is something of that name, and plain code elsewhere.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say types, shapes and units
maximum_signature_line_length = 80
python_display_short_literal_types = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
smartquotes = False

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "source_repository": "https://github.com/ensemblead/ensemblead/",
    "source_branch": "main",
    "source_directory": "docs/",
}
# A copy button takes what is typed, without prompts.
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

# Nothing is downloaded while the examples of docstrings are read.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
