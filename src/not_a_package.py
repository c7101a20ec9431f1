"""What `pip install .` finds (pyproject.toml), so that it does not install an empty package."""

raise SystemExit("error: there is nothing to install but requirements.txt; run python -m main in this folder")
