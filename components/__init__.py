"""The components of a stack: one module for each service."""
