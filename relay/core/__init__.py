"""Pure: no event loop, sockets, clock, environment or logging. See docs/design.md."""
