"""The components of a stack: one module for each service, with its settings first, then its component."""
