"""The claims of the papers in small, on two CPU cores: `make reproduce`, or ``python -m experiments --help``."""
