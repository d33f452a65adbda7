"""Pure: a Redis message becomes a JobEvent, one file per dialect."""
