#!/bin/bash
# Starts Postgres: makes the cluster if there is none, brings its roles into line with the secrets, then execs the
# server. Runs as the user postgres. usage: start.sh [-c parameter=value]...
set -Eeuo pipefail

CONFIG=${CONFIG:-/run/config}
SECRETS=${SECRETS:-/run/secrets}

# Ends with a message on stderr. usage: die "what is wrong" "what to do"
die() {
    printf 'start.sh: %s\n' "$@" >&2
    exit 1
}

# Makes the cluster beside its place and moves it there whole, so that a kill in between leaves nothing that looks
# like a database.
create_cluster() {
    rm -rf "$PGDATA.new"
    mkdir -p "$(dirname "$PGDATA")"
    # The built-in collation: glibc's changes with the image, and an index built under another one is corrupt.
    initdb --pgdata="$PGDATA.new" --username=postgres --encoding=UTF8 \
        --locale-provider=builtin --builtin-locale=C.UTF-8 --locale=C.UTF-8 \
        --data-checksums --auth-local=peer --auth-host=reject
    # An empty folder may stand in the way; anything else must not be touched.
    [ ! -e "$PGDATA" ] || rmdir "$PGDATA" ||
        die "$PGDATA holds files but no PG_VERSION: this is no database of this version" \
            "look at it before anything else: docker run --rm -it --volumes-from $HOSTNAME <image> bash"
    mv "$PGDATA.new" "$PGDATA"
}

# A password that follows its file at every start cannot drift from it. The server listens on the socket only, so
# nobody sees a database between two passwords.
reconcile_roles() {
    [ -s "$SECRETS/mlflow-password" ] ||
        die "the secret $SECRETS/mlflow-password is missing or empty" \
            "it is written by the Pulumi program: type: make up STACK=${STACK:-dev}, which writes it again"
    # A crash recovery comes here, and may take as long as it needs.
    pg_ctl --pgdata="$PGDATA" --wait --timeout=3600 --silent \
        --options="-c listen_addresses='' -c hba_file=$CONFIG/pg_hba.conf" start
    psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username=postgres --dbname=postgres --file="$CONFIG/roles.sql" ||
        { pg_ctl --pgdata="$PGDATA" --mode=fast --silent stop && die "roles.sql failed; see above"; }
    pg_ctl --pgdata="$PGDATA" --wait --mode=fast --silent stop
}

main() {
    [ -s "$PGDATA/PG_VERSION" ] || create_cluster
    reconcile_roles
    exec postgres "$@"
}

# Sourced by its tests, which call one function at a time.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    main "$@"
fi
