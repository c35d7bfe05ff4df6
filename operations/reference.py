"""`make docs`: writes the pages that are generated from the settings' models, and the JSON Schema of a stack file.

Editors use the schema to complete `Pulumi.*.yaml`. A test compares all files with the committed ones.
"""

import json
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from operations.common.checkout import ROOT
from settings import variables
from settings.base import Settings
from settings.secrets import SECRET_KEYS
from settings.stack import NAMESPACE, StackConfig

INTRODUCTION = """# Settings

Generated from the models by `make docs`. All settings go into `Pulumi.<stack>.yaml`. Every setting has a default. Set
a setting in its section, or with `pulumi config set --path mlflow:server.workers 4`:

```yaml
config:
  mlflow:server:
    workers: 4
```

Wrong settings are reported before anything is changed: all at once, each with its path.
"""

SECRETS_TEXT = """## Secrets

The first `make up` generates these secrets, and writes them, encrypted, into the stack file. To set your own, before or
after that: `printf %s VALUE | pulumi config set --secret KEY`.
`docs/operations/rotate.md` explains the effect of each change.

| key | what it is |
| --- | --- |
| `mlflow:postgresPassword` | password of the role `mlflow` in Postgres |
| `mlflow:minioRootPassword` | root password of MinIO (its user is `mlflow-admin`) |
| `mlflow:minioPassword` | secret key of the identity `mlflow`, which may use only its bucket |
| `mlflow:seaweedfsAdminPassword` | secret key of SeaweedFS' identity `mlflow-admin` |
| `mlflow:seaweedfsPassword` | secret key of its identity `mlflow`, which may use only its bucket |
| `mlflow:cryptoKekPassphrase` | data key: encrypts MLflow's gateway secrets in the database |
| `mlflow:webhookEncryptionKey` | data key: encrypts the secrets of MLflow's webhooks in the database |
| `mlflow:clientPassword` | password that Traefik requires from browsers or clients; 32 to 64 characters |
| `mlflow:adminPassword` | password of the user `admin`, with `mlflow:authentication: mlflow` |
| `mlflow:flaskSecretKey` | signs MLflow's forms, with `mlflow:authentication: mlflow` |
| `mlflow:postgresBackupPassword`, `minioBackupPassword`, `seaweedfsBackupPassword` | credentials for the backup |
| `mlflow:internalAuthority` | authority of the services' certificates, with `mlflow:tls.internal` |
| `mlflow:nextCryptoKekPassphrase`, `nextWebhookEncryptionKey` | new data keys, while `make rotate` encrypts with them |
| `mlflow:objectStoreKey` | data key: encrypts the artifacts, with `mlflow:objectStore.encryption`; 32 characters |
| `mlflow:backupPassword` | data key: decrypts the backups |
| `mlflow:postgresMonitoringPassword`, `minioMonitoringPassword` | credentials for the monitoring |
| `mlflow:grafanaPassword` | password of Grafana's user `admin` |
| `mlflow:traefikCertificateKey` | seed of the `selfSigned` certificate of the bundled Traefik |
| `mlflow:backupTargetSecretKey` | not generated: secret key of an S3 backup target |
| `mlflow:tlsCertificate`, `mlflow:tlsKey`, `mlflow:acmeDnsToken` | not generated: for the bundled Traefik |
| `mlflow:alertWebhookUrl`, `deadMansSwitchUrl`, `smtpPassword` | not generated: for Alertmanager's notifications |
"""


def markdown() -> str:
    """Return the page of the settings."""
    parts = [INTRODUCTION, "## Top level\n", _table(StackConfig, f"{NAMESPACE}:", sections=False)]
    for field in StackConfig.model_fields.values():
        if section := _section(field):
            parts += [f"\n## {field.alias}\n\n{field.description}\n", _table(section, f"{NAMESPACE}:{field.alias}.")]
    return "\n".join([*parts, "\n" + SECRETS_TEXT])


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a stack file."""
    model = StackConfig.model_json_schema(by_alias=True)
    definitions = model.pop("$defs")
    # Keys of an image that are left out have defaults.
    definitions["Image"].pop("required")
    properties = {f"{NAMESPACE}:{key}": value for key, value in model["properties"].items()}
    secure = {"type": "object", "properties": {"secure": {"type": "string"}}, "required": ["secure"]}
    # Pulumi writes top-level values as strings.
    properties[f"{NAMESPACE}:protectData"] = {"enum": [True, False, "true", "false"], "default": True}
    properties |= {f"{NAMESPACE}:{key}": secure for key in SECRET_KEYS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Pulumi.<stack>.yaml of MLflow on Docker",
        "type": "object",
        "properties": {
            "config": {
                "type": "object",
                "properties": properties,
                # Other namespaces, such as docker:host, belong to providers.
                "patternProperties": {f"^(?!{NAMESPACE}:)": {}},
                "additionalProperties": False,
            }
        },
        "$defs": definitions,
    }


VARIABLES = """# Environment variables of MLflow's server

Generated from [mlflow/variables.toml](../mlflow/variables.toml) by `make docs`: every variable of the installed MLflow,
and whether you can set it. A test compares the list with the package, so that no variable of a new MLflow is missed.

To set a variable:

```yaml
config:
  mlflow:server:
    environment:
      MLFLOW_GATEWAY_API_BASE_ALLOW_PRIVATE_IPS: "true"          # for a model server in your own network,
      MLFLOW_GATEWAY_API_BASE_ALLOWED_SCHEMES: "http,https"      # without TLS, such as http://ollama:11434/v1
```

Variables that are not MLflow's are accepted, too, unless the stack sets them, or their name or value looks like a
secret: `docker inspect` shows the environment to everybody with access to Docker.
"""
KINDS = {
    "server": "Yours: `mlflow:server.environment`",
    "ours": "Set by a setting of the stack",
    "fixed": "Fixed: the stack sets it, or relies on its default",
    "secret": "Secrets: not allowed in the environment",
    "client": "For clients: no effect on the server",
}


def variables_page() -> str:
    """Return the page of MLflow's variables."""
    parts = [VARIABLES]
    for kind, heading in KINDS.items():
        parts.append(f"\n## {heading}\n\n| variable | |\n| --- | --- |")
        for name, entry in sorted(variables.known().items()):
            if entry["kind"] == kind:
                setting = f"`{entry['setting']}`. " if "setting" in entry else ""
                parts.append(f"| `{name}` | {setting}{entry['why']} |")
    return "\n".join(parts) + "\n"


def _section(field: FieldInfo) -> type[Settings] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def _table(model: type[Settings], prefix: str, *, sections: bool = True) -> str:
    rows = ["| setting | default | what it does |", "| --- | --- | --- |"]
    for field in model.model_fields.values():
        section = _section(field)
        if section and not sections:
            continue
        default = None if field.is_required() else field.default
        if isinstance(default, Settings):
            shown = "<br>".join(f"`{key}: {value}`" for key, value in default.model_dump(by_alias=True).items())
        else:
            shown = "-" if default is None or default == () else f"`{json.dumps(default)}`"
        rows.append(f"| `{prefix}{field.alias}` | {'required' if field.is_required() else shown} | {_text(field)} |")
        # An optional section.
        for part in get_args(field.annotation):
            if isinstance(part, type) and issubclass(part, Settings):
                rows += _table(part, f"{prefix}{field.alias}.").splitlines()[2:]
    return "\n".join(rows)


def _text(field: FieldInfo) -> str:
    kind = field.annotation
    choices = [str(choice) for choice in get_args(kind) if isinstance(choice, str)]
    bounds = {type(rule).__name__: rule for rule in field.metadata}
    words = [field.description or ""]
    if choices:
        words.append("One of " + ", ".join(f"`{choice}`" for choice in choices) + ".")
    if "Ge" in bounds and "Le" in bounds:
        words.append(f"{bounds['Ge'].ge} to {bounds['Le'].le}.")
    return " ".join(words)


def write(folder: Path) -> None:
    """Write all files into `folder`."""
    (folder / "settings.md").write_text(markdown())
    (folder / "mlflow-variables.md").write_text(variables_page())
    (folder / "settings.schema.json").write_text(json.dumps(schema(), indent=2) + "\n")


if __name__ == "__main__":
    write(ROOT / "docs")
