"""Writes the pages that are made of the settings' models, and the schema of a stack's file: `make docs`.

The schema completes `Pulumi.*.yaml` in editors. A test compares all of them with what is committed.
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

Generated from the models by `make docs`. Everything goes into `Pulumi.<stack>.yaml`, and nothing has to: each setting
has a default. A section is set like this, or by `pulumi config set --path mlflow:server.workers 4`:

```yaml
config:
  mlflow:server:
    workers: 4
```

Wrong settings are refused before anything is changed, all at once, each with its path.
"""

SECRETS_TEXT = """## Secrets

Generated, and written into the stack's file, encrypted, by the first `make up`. To bring your own, before or after
(`docs/operations/rotate.md` says what each change means): `printf %s VALUE | pulumi config set --secret KEY`.

| key | what it is |
| --- | --- |
| `mlflow:postgresPassword` | password of the role `mlflow` in Postgres |
| `mlflow:minioRootPassword` | root password of MinIO (its user is `mlflow-admin`) |
| `mlflow:minioPassword` | secret key of the identity `mlflow`, which may use its bucket and nothing else |
| `mlflow:seaweedfsAdminPassword` | secret key of SeaweedFS' identity `mlflow-admin` |
| `mlflow:seaweedfsPassword` | secret key of its identity `mlflow`, which may use its bucket and nothing else |
| `mlflow:cryptoKekPassphrase` | data key: encrypts MLflow's gateway secrets in the database |
| `mlflow:webhookEncryptionKey` | data key: encrypts the secrets of MLflow's webhooks in the database |
| `mlflow:clientPassword` | what Traefik asks browsers or clients for; 32 characters or more |
| `mlflow:adminPassword` | password of `admin`, with MLflow's own users |
| `mlflow:flaskSecretKey` | signs the forms of MLflow's own users |
| `mlflow:postgresBackupPassword`, `minioBackupPassword`, `seaweedfsBackupPassword` | of who reads for the backup |
| `mlflow:backupPassword` | data key: opens the backups |
| `mlflow:postgresMonitoringPassword`, `minioMonitoringPassword` | of who reads figures |
| `mlflow:grafanaPassword` | password of Grafana's user `admin` |
| `mlflow:traefikCertificateKey` | what a `selfSigned` certificate of the bundled Traefik is made of |
| `mlflow:backupTargetSecretKey` | not generated: secret key of an S3 target |
| `mlflow:tlsCertificate`, `mlflow:tlsKey`, `mlflow:acmeDnsToken` | not generated: of the bundled Traefik |
| `mlflow:alertWebhookUrl`, `deadMansSwitchUrl`, `smtpPassword` | not generated: whom Alertmanager tells |
"""


def markdown() -> str:
    """Return the page."""
    parts = [INTRODUCTION, "## Top level\n", _table(StackConfig, f"{NAMESPACE}:", sections=False)]
    for field in StackConfig.model_fields.values():
        if section := _section(field):
            parts += [f"\n## {field.alias}\n\n{field.description}\n", _table(section, f"{NAMESPACE}:{field.alias}.")]
    return "\n".join([*parts, "\n" + SECRETS_TEXT])


def schema() -> dict[str, Any]:
    """Return a JSON Schema of a stack's file."""
    model = StackConfig.model_json_schema(by_alias=True)
    definitions = model.pop("$defs")
    # What is not typed of an image is filled in.
    definitions["Image"].pop("required")
    properties = {f"{NAMESPACE}:{key}": value for key, value in model["properties"].items()}
    secure = {"type": "object", "properties": {"secure": {"type": "string"}}, "required": ["secure"]}
    # Pulumi writes a value at the top level as text.
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
                # Other namespaces, such as docker:host, are the provider's.
                "patternProperties": {f"^(?!{NAMESPACE}:)": {}},
                "additionalProperties": False,
            }
        },
        "$defs": definitions,
    }


VARIABLES = """# Environment variables of MLflow's server

Generated from [mlflow/variables.toml](../mlflow/variables.toml) by `make docs`: every variable of the installed MLflow,
and whose it is. A test compares the list with the package, so that the variables of a new MLflow are decided about.

To set one:

```yaml
config:
  mlflow:server:
    environment:
      MLFLOW_GATEWAY_API_BASE_ALLOW_PRIVATE_IPS: "true"          # a model server at an address of your own network,
      MLFLOW_GATEWAY_API_BASE_ALLOWED_SCHEMES: "http,https"      # without TLS, such as http://ollama:11434/v1
```

A variable that is not MLflow's is taken as well, unless the stack sets it or its name or value looks like a secret's:
`docker inspect` shows the environment to everybody on the host.
"""
KINDS = {
    "server": "Yours: `mlflow:server.environment`",
    "ours": "A setting sets it",
    "fixed": "Fixed: the stack sets it, or relies on its default",
    "secret": "A secret: not in the environment",
    "client": "Of clients: no effect on the server",
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
        # A section that may be left out.
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
