"""The commands that only read: status, logs, doctor, url, client, password."""
