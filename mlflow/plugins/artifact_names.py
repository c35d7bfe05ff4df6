"""Refuses an artifact whose name is already the name of a folder, or the reverse: no supported object store keeps both.

MinIO answers 200, but no longer lists one of them; SeaweedFS answers 200, but returns the file empty. A file system
refuses it, as MLflow does with artifacts on disk. MLflow loads this class instead of its own through the documented
entry point `mlflow.artifact_repository`.
"""

import posixpath

from botocore.exceptions import ClientError
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

OWNED = "artifacts"
"""Folder of a run, model or trace. Clients choose the names below it; MLflow chooses the names above it."""
NOT_FOUND = ("404", "NoSuchKey", "NotFound")


class Artifacts(S3ArtifactRepository):
    """MLflow's S3 artifacts, with a check before each upload that the name is free."""

    def log_artifact(self, local_file, artifact_path=None):
        """Upload a file as MLflow's own class does; raise `MlflowException` if its name, or a folder's, is taken."""
        self._require_free(local_file, artifact_path)
        super().log_artifact(local_file, artifact_path)

    def create_multipart_upload(self, local_file, num_parts=1, artifact_path=None):
        """Start a multipart upload as MLflow's own class does; raise `MlflowException` like `log_artifact`."""
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
    """Return the folders in an artifact's name that the client chose, the outermost first."""
    parts = name.split("/")[:-1]
    begin = parts.index(OWNED) + 1 if OWNED in parts else 0
    return ["/".join(parts[: end + 1]) for end in range(begin, len(parts))]


def _taken(name, why):
    return MlflowException(
        f"the artifact {name!r} cannot be stored: {why}, and a file and a folder cannot have the same name. "
        "Choose another name for one of them.",
        error_code=RESOURCE_ALREADY_EXISTS,
    )
