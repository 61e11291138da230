"""The site of these pages: `sphinx-build -W docs site`, of which `site/index.html` opens without a server."""

import xception_hub

project = 'xception_hub'
author = 'the authors of xception_hub'
version = release = xception_hub.__version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
default_role = 'code'  # what docstrings mean by backticks
smartquotes = False
myst_heading_anchors = 3  # links to headings, as GitHub makes them

autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_typehints_format = 'short'
autoclass_content = 'both'
napoleon_numpy_docstring = False

html_theme = 'furo'
html_title = 'xception_hub'
html_show_copyright = False
