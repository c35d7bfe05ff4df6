#!/bin/bash
# Starts one role of the MLflow image: server | migrate | verify-data-keys | gc. Runs any other command unchanged.
# Secrets are files in /run/secrets. A secret that MLflow cannot read from a file becomes an environment variable, but
# only of the process that is exec'ed last.
set -Eeuo pipefail

SECRETS=${SECRETS:-/run/secrets}
PRIVATE=${PRIVATE:-/run/mlflow}  # a private tmpfs
METRICS=${METRICS:-/run/metrics} # another tmpfs: the workers' metrics must not use up the password file's space

# Prints an error on stderr and exits. usage: die "what is wrong" "what to do"
die() {
    printf 'docker-entrypoint: %s\n' "$@" >&2
    exit 1
}

# Exits if a secret is missing or empty. usage: require_secret pgpass
require_secret() {
    [ -s "$SECRETS/$1" ] ||
        die "the secret $SECRETS/$1 is missing or empty" \
            "to write it again, type: make up STACK=${STACK:-dev}"
}

# libpq ignores a password file that other users can read. The file is moved into place complete, because gc runs beside
# a server that reads it.
use_pgpass() {
    require_secret pgpass
    (umask 077 && cat "$SECRETS/pgpass" >"$PRIVATE/pgpass.$$" && mv "$PRIVATE/pgpass.$$" "$PRIVATE/pgpass")
    export PGPASSFILE="$PRIVATE/pgpass"
}

use_object_store() {
    require_secret aws-credentials
    export AWS_SHARED_CREDENTIALS_FILE="$SECRETS/aws-credentials"
}

# With TLS between the services, every library that the server uses for HTTP also trusts the stack's own authority. (The
# database's clients trust that one only.) A server that calls the gateway of a model provider needs the others, too.
trust_authority() {
    [ -n "${AUTHORITY:-}" ] || return 0
    local others=${SSL_CERT_FILE:-${REQUESTS_CA_BUNDLE:-}}
    [ -n "$others" ] || others=$(python -c "import certifi; print(certifi.where())")
    cat "$others" "$AUTHORITY" >"$PRIVATE/authorities.pem.$$"
    mv "$PRIVATE/authorities.pem.$$" "$PRIVATE/authorities.pem"
    export SSL_CERT_FILE="$PRIVATE/authorities.pem"
    export REQUESTS_CA_BUNDLE="$SSL_CERT_FILE" AWS_CA_BUNDLE="$SSL_CERT_FILE" CURL_CA_BUNDLE="$SSL_CERT_FILE"
}

# MLflow reads its data keys only from the environment.
use_data_keys() {
    require_secret crypto-kek-passphrase
    require_secret webhook-encryption-key
    MLFLOW_CRYPTO_KEK_PASSPHRASE=$(<"$SECRETS/crypto-kek-passphrase")
    MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY=$(<"$SECRETS/webhook-encryption-key")
    export MLFLOW_CRYPTO_KEK_PASSPHRASE MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY
}

# With `mlflow:authentication: mlflow`, Flask signs the users' forms with a key.
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

# The exporter merges all files that it finds: those of an earlier start would be counted again.
fresh_metrics_directory() {
    find "$METRICS" -mindepth 1 -delete
    export MLFLOW_EXPOSE_PROMETHEUS="$METRICS"
}

# On a separate port without authentication: MLflow's own /metrics requires the administrator's password with
# `mlflow:authentication: mlflow`.
serve_metrics() {
    [ -z "${METRICS_PORT:-}" ] || PROMETHEUS_MULTIPROC_DIR="$METRICS" python /opt/mlflow-stack/metrics.py &
}

# Removes the files of uploads that were running when the server was killed.
empty_scratch() {
    [ -n "${TMPDIR:-}" ] || return 0
    find "$TMPDIR" -mindepth 1 -delete
}

# Serves until the stop signal. With LEAVE_SECONDS, other replicas serve as well, and a proxy distributes the requests:
# the stop signal first makes the server refuse the proxy's health checks, and stops it that many seconds later.
serve() {
    [ -n "${LEAVE_SECONDS:-}" ] || serve_until_stopped
    rm -f "$PRIVATE/draining" "$PRIVATE/in-balance"
    trap leave TERM INT
    serve_until_stopped &
    server=$!
    # A signal ends `wait`, not the server.
    while kill -0 "$server" 2>/dev/null; do
        wait "$server" || true
    done
    # bash remembers the exit code of a server that ended before this line, or before the loop.
    wait "$server"
    exit
}

# Replaces this process, or a subshell, by the server: no other process has the data keys.
serve_until_stopped() {
    use_data_keys
    use_users
    asks_users || exec python /opt/mlflow-stack/serve.py
    # The only option without an environment variable.
    exec python /opt/mlflow-stack/serve.py --app-name basic-auth
}

leave() {
    trap '' TERM INT
    # Until the proxy knows the servers that replace this one.
    sleep "${STAY_SECONDS:-0}"
    touch "$PRIVATE/draining"
    echo "docker-entrypoint: the server stops in $LEAVE_SECONDS s, when the proxy sends no more requests" >&2
    sleep "$LEAVE_SECONDS"
    # It may have ended by itself meanwhile.
    kill -TERM "$server" 2>/dev/null || true
}

_main() {
    case "${1:-server}" in
    server)
        # First, before any secret is exported: the process that serves the metrics needs none.
        fresh_metrics_directory
        serve_metrics
        use_pgpass
        use_object_store
        trust_authority
        empty_scratch
        serve
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
        # Waits for a running backup here, while the old server runs, and not in the migration, while no server runs.
        exec python /opt/mlflow-stack/locked.py verify-data-keys python /opt/mlflow-stack/verify_data_keys.py
        ;;
    gc)
        # Runs beside the server, which deletes the artifacts. $2 is the age, in the format of mlflow gc.
        use_pgpass
        trust_authority
        exec python /opt/mlflow-stack/locked.py gc python /opt/mlflow-stack/collect.py "$2"
        ;;
    *)
        exec "$@"
        ;;
    esac
}

# The tests source this file and call single functions.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    _main "$@"
fi
