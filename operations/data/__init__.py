"""The commands on data: backup, restore test, restore, garbage collection."""
