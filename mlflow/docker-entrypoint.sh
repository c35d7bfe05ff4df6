#!/bin/bash
# Starts one role of the MLflow image: server | migrate | verify-data-keys | gc, or any other command as it is.
# Secrets come as files in /run/secrets. Only what MLflow cannot read from a file becomes an environment variable,
# of the process that is exec'ed last and of no other.
set -Eeuo pipefail

SECRETS=${SECRETS:-/run/secrets}
PRIVATE=${PRIVATE:-/run/mlflow}  # a tmpfs of our own
METRICS=${METRICS:-/run/metrics} # another: what the workers count must not crowd out the password file

# Ends with a message on stderr. usage: die "what is wrong" "what to do"
die() {
    printf 'docker-entrypoint: %s\n' "$@" >&2
    exit 1
}

# Checks that a secret is there and not empty. usage: require_secret pgpass
require_secret() {
    [ -s "$SECRETS/$1" ] ||
        die "the secret $SECRETS/$1 is missing or empty" \
            "it is written by the Pulumi program: type: make up STACK=${STACK:-dev}, which writes it again"
}

# libpq ignores a password file that is not private to the user that runs it. Moved there whole: beside a server that
# reads it, gc must not cut it off.
use_pgpass() {
    require_secret pgpass
    (umask 077 && cat "$SECRETS/pgpass" >"$PRIVATE/pgpass.$$" && mv "$PRIVATE/pgpass.$$" "$PRIVATE/pgpass")
    export PGPASSFILE="$PRIVATE/pgpass"
}

use_object_store() {
    require_secret aws-credentials
    export AWS_SHARED_CREDENTIALS_FILE="$SECRETS/aws-credentials"
}

# MLflow reads its data keys from the environment only.
use_data_keys() {
    require_secret crypto-kek-passphrase
    require_secret webhook-encryption-key
    MLFLOW_CRYPTO_KEK_PASSPHRASE=$(<"$SECRETS/crypto-kek-passphrase")
    MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY=$(<"$SECRETS/webhook-encryption-key")
    export MLFLOW_CRYPTO_KEK_PASSPHRASE MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY
}

# Where MLflow asks its users who they are, Flask signs their forms with a key.
use_users() {
    asks_users || return 0
    require_secret auth.ini
    require_secret flask-secret-key
    MLFLOW_FLASK_SERVER_SECRET_KEY=$(<"$SECRETS/flask-secret-key")
    export MLFLOW_FLASK_SERVER_SECRET_KEY
}

asks_users() {
    [ -n "${MLFLOW_AUTH_CONFIG_PATH:-}" ]
}

# The exporter merges whatever files it finds, so those of an earlier start would be counted again.
fresh_metrics_directory() {
    find "$METRICS" -mindepth 1 -delete
    export MLFLOW_EXPOSE_PROMETHEUS="$METRICS"
}

# On a port of their own, where nobody is asked who he is: MLflow's own /metrics wants an administrator's password where
# it has users.
serve_metrics() {
    [ -z "${METRICS_PORT:-}" ] || PROMETHEUS_MULTIPROC_DIR="$METRICS" python /opt/mlflow-stack/metrics.py &
}

# What an upload left behind when the server was killed belongs to nobody.
empty_scratch() {
    [ -n "${TMPDIR:-}" ] || return 0
    find "$TMPDIR" -mindepth 1 -delete
}

_main() {
    case "${1:-server}" in
    server)
        # First: what serves them has no use for a secret, and would have those that are exported by then.
        fresh_metrics_directory
        serve_metrics
        use_pgpass
        use_object_store
        use_data_keys
        use_users
        empty_scratch
        asks_users || exec python /opt/mlflow-stack/serve.py
        # The one option that has no variable.
        exec python /opt/mlflow-stack/serve.py --app-name basic-auth
        ;;
    migrate)
        use_pgpass
        python /opt/mlflow-stack/locked.py migrate python /opt/mlflow-stack/migrate.py
        asks_users || return 0
        require_secret admin-password
        exec python /opt/mlflow-stack/locked.py migrate python /opt/mlflow-stack/set_admin_password.py
        ;;
    verify-data-keys)
        use_pgpass
        use_data_keys
        # Waits for a backup here, where the old server still runs, and not in the migration, where it does not.
        exec python /opt/mlflow-stack/locked.py verify-data-keys python /opt/mlflow-stack/verify_data_keys.py
        ;;
    gc)
        # Beside the server, which deletes the artifacts; with the age in the spelling of mlflow gc.
        use_pgpass
        exec python /opt/mlflow-stack/locked.py gc python /opt/mlflow-stack/collect.py "$2"
        ;;
    *)
        exec "$@"
        ;;
    esac
}

# Sourced by its tests, which call one function at a time.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    _main "$@"
fi
