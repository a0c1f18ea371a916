"""The studies behind the documents' tables, one a module: a docstring, `add_options(parser)` and `run(options)`."""
