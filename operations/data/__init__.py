"""The commands on data: backup, restore test, restore, export, encryption, garbage collection, upgrade of Postgres."""
