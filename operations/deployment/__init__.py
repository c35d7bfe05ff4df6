"""The commands that change a deployment: up, preview, drift, down, destroy, pin, prune."""
