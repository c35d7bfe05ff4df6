"""The commands that change a deployment: init, up, preview, drift, down, destroy, env, pin, prune."""
