"""The operations on a deployment: `make VERB` runs `python -m operations VERB`.

They identify a deployment by its stack outputs, its Docker labels and the names in `settings.names`, and do not
depend on the internals of the Pulumi program.
"""
