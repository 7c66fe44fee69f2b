"""Worked examples, each a folder to read and to copy."""
