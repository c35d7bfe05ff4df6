"""The commands that only read: status, logs, doctor, images, url, client, password, scrape, authority."""
