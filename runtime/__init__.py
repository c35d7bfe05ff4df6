"""What a workload is, and how it becomes a container. Knows Docker and Pulumi, not MLflow."""
