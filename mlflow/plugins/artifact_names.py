"""Artifacts in S3, where a file and a folder of one name are refused: no object store here keeps both.

MinIO answers 200 and lists one of them no more; SeaweedFS answers 200 and gives the file back empty. A file system
refuses it, and so did MLflow with artifacts on a disk. MLflow loads this in place of its own class by an entry point
of `mlflow.artifact_repository`, its documented way.
"""

import posixpath

from botocore.exceptions import ClientError
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

OWNED = "artifacts"
"""Name of the folder of a run, a model or a trace in which its names are a client's. Above it they are MLflow's."""
NOT_FOUND = ("404", "NoSuchKey", "NotFound")


class Artifacts(S3ArtifactRepository):
    """MLflow's own, which asks before an upload whether the name is free."""

    def log_artifact(self, local_file, artifact_path=None):
        """Upload a file as MLflow's own does; raise `MlflowException` where its name, or a folder's, is not free."""
        self._require_free(local_file, artifact_path)
        super().log_artifact(local_file, artifact_path)

    def create_multipart_upload(self, local_file, num_parts=1, artifact_path=None):
        """Begin an upload in parts as MLflow's own does; raise as `log_artifact`."""
        self._require_free(local_file, artifact_path)
        return super().create_multipart_upload(local_file, num_parts, artifact_path)

    def _require_free(self, local_file, artifact_path):
        bucket, root = self.parse_s3_compliant_uri(self.artifact_uri)
        name = posixpath.join(artifact_path or "", posixpath.basename(local_file))
        client = self._get_s3_client()
        for folder in folders(name):
            if self._is_file(client, bucket, posixpath.join(root, folder)):
                raise _taken(name, f"{folder!r} is a file")
        below = posixpath.join(root, name) + "/"
        if client.list_objects_v2(Bucket=bucket, Prefix=below, MaxKeys=1, **self._bucket_owner_params).get("Contents"):
            raise _taken(name, "there is a folder of this name")

    def _is_file(self, client, bucket, key):
        try:
            client.head_object(Bucket=bucket, Key=key, **self._bucket_owner_params)
        except ClientError as error:
            if error.response["Error"]["Code"] in NOT_FOUND:
                return False
            raise
        return True


def folders(name):
    """Return the folders of an artifact that a client has named, the outermost first."""
    parts = name.split("/")[:-1]
    begin = parts.index(OWNED) + 1 if OWNED in parts else 0
    return ["/".join(parts[: end + 1]) for end in range(begin, len(parts))]


def _taken(name, why):
    return MlflowException(
        f"the artifact {name!r} cannot be stored: {why}, and a file and a folder cannot have one name. "
        "Choose another name for one of them.",
        error_code=RESOURCE_ALREADY_EXISTS,
    )
