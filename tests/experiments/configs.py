"""What the tests of several experiments ask of their two configurations."""

import dataclasses


def changed(full, quick):
    """Names of the fields in which two configurations differ."""
    names = {field.name for field in dataclasses.fields(full)}
    return {name for name in names if getattr(full, name) != getattr(quick, name)}
