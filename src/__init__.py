import sys

if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    version = ".".join(map(str, sys.version_info[:2]))
    sys.exit(
        f"error: this is Python {version}; Hydra and the versions in requirements.txt work with Python 3.10 to 3.13"
    )
