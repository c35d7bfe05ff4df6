"""The rehearsal: the unchanged Pulumi program, run where the Pulumi engine cannot be had.

Pulumi's Python SDK runs `__main__.py` and sends its registrations to `monitor.py` instead of to the engine; `host.py`
makes on the Docker daemon what they ask for. It knows the resource types that this program uses and refuses any other.

It is not Pulumi: no plan, no state, no refresh, no drift. It proves the program, its images, gates and containers; it
does not prove the engine or its providers. For dev only, and gone when the engine comes: `operations/rehearse.py`.
"""
