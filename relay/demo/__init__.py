"""`relay demo`: an embedded server, a worker with real work, the relay between them."""
