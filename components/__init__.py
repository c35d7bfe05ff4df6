"""What is deployed: one file for each service, its settings first, then its component."""
