"""How this relay was built: `RELAY_COMPILE=1 pip install .` compiles the hot path (see setup.py)."""

from importlib.util import find_spec


def is_compiled() -> bool:
    """Whether the hot path runs as C extensions; otherwise as the Python it is written in."""
    found = find_spec("relay.core.router")
    return found is not None and not (found.origin or "").endswith(".py")
