"""Configuration of Sphinx."""

import gpx

project = "gpx"
author = "The gpx authors"
copyright = "The gpx authors"
version = release = gpx.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
default_role = "code"  # `name` in a docstring

# Pages are MyST Markdown; notebooks carry their outputs.
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

suppress_warnings = ["ref.python"]  # two classes are called Problem: of inference, and of differential equations

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "exclude-members": "combine"}
autodoc_preserve_defaults = True
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "sphinx_book_theme"
html_title = f"gpx {release}"
html_theme_options = {"show_navbar_depth": 1, "use_fullscreen_button": False, "use_download_button": False}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
