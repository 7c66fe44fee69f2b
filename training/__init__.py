"""What is done once, before a version is published: fitting transforms. The server never imports this room."""

from penstock.training.transforms import FitError, fit

__all__ = ["FitError", "fit"]
