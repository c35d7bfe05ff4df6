"""`make import`: the data of an old MLflow, copied into a stack."""
