"""What is done to a deployment: `python -m operations VERB`, behind `make VERB`.

Knows a deployment by its stack outputs, its Docker labels and the names in `components.names`, never by the
program's insides.
"""
