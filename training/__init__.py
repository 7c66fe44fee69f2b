"""What is done once, before a version is published: fitting transforms. The server never imports this room."""

from penstock.training.recipes import FitError
from penstock.training.transforms import fit

__all__ = ["FitError", "fit"]
