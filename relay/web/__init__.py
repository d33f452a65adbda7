"""Everything that talks to clients."""
