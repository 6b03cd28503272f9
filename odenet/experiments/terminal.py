"""The terminal that commands write to."""

from rich.console import Console


def console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=max(found.width, 140))
