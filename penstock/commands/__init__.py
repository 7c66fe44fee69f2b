"""penstock/commands."""
