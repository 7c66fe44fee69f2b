"""What was served against what was trained on: reference profiles, windows of counts, drift statistics."""

from penstock.monitoring.profile import ColumnProfile, Layout, Profile, ProfileError, Reference
from penstock.monitoring.statistics import FeatureDrift, compare, smoothed
from penstock.monitoring.windows import DriftCounter, Window

__all__ = [
    "ColumnProfile",
    "DriftCounter",
    "FeatureDrift",
    "Layout",
    "Profile",
    "ProfileError",
    "Reference",
    "Window",
    "compare",
    "smoothed",
]
