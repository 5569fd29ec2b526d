"""What makes the documentation site of the pages, the docstrings and the notebooks; see `.docs/conf.py`."""
