"""The provisioning of the bundled Grafana."""

import json
from pathlib import Path

from components.internal_tls import AUTHORITY
from runtime.workload import CONFIG

ASSETS = Path(__file__).parent.parent / "assets" / "monitoring"


def grafana_files(prometheus: str) -> dict[str, str]:
    """Return the files that Grafana reads when it starts: its data source, and the dashboards."""
    data_source = {
        "name": "Prometheus",
        "uid": "prometheus",
        "type": "prometheus",
        "url": prometheus,
        "isDefault": True,
    }
    if prometheus.startswith("https:"):
        # Grafana reads the file when it starts.
        data_source |= {
            "jsonData": {"tlsAuthWithCACert": True},
            "secureJsonData": {"tlsCACert": f"$__file{{{AUTHORITY}}}"},
        }
    source = {"apiVersion": 1, "datasources": [data_source]}
    provider = {
        "apiVersion": 1,
        "providers": [{"name": "mlflow", "type": "file", "options": {"path": f"{CONFIG}/dashboards"}}],
    }
    return {
        "provisioning/datasources/prometheus.yaml": json.dumps(source, indent=2) + "\n",
        "provisioning/dashboards/mlflow.yaml": json.dumps(provider, indent=2) + "\n",
        **{f"dashboards/{file.name}": file.read_text() for file in sorted((ASSETS / "dashboards").glob("*.json"))},
    }
