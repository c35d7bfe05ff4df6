"""The Docker host: what is checked on it, and what is prepared there."""
