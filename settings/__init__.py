"""What can be set in a stack file: one model for each section, the cross-checks, the wording of errors.

Imports neither Pulumi nor Docker, so that every command reads settings at once.
"""
