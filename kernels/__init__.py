"""All compiled code. Each kernel is imported by its own name; `reference` holds what each must equal, in numpy."""
