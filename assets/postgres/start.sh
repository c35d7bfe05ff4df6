#!/bin/bash
# Starts Postgres: creates the cluster if there is none, sets its roles and passwords from the secret files, then execs
# the server. Runs as the user postgres. usage: start.sh [-c parameter=value]...
set -Eeuo pipefail

CONFIG=${CONFIG:-/run/config}
SECRETS=${SECRETS:-/run/secrets}
SOCKETS=${SOCKETS:-/var/run/postgresql} # a tmpfs

# Prints an error on stderr and exits. usage: die "what is wrong" "what to do"
die() {
    printf 'start.sh: %s\n' "$@" >&2
    exit 1
}

# Creates the cluster in another folder and moves it into place when it is complete: an interrupted run leaves nothing
# that looks like a database.
create_cluster() {
    rm -rf "$PGDATA.new"
    mkdir -p "$(dirname "$PGDATA")"
    # The built-in collation, because glibc's changes with the image, and would corrupt existing indexes.
    initdb --pgdata="$PGDATA.new" --username=postgres --encoding=UTF8 \
        --locale-provider=builtin --builtin-locale=C.UTF-8 --locale=C.UTF-8 \
        --data-checksums --auth-local=peer --auth-host=reject
    # An empty folder may be removed; a folder with files must not be changed.
    [ ! -e "$PGDATA" ] || rmdir "$PGDATA" ||
        die "$PGDATA holds files but no PG_VERSION: it is not a database of this Postgres version" \
            "to look at the files, type: docker run --rm -it --volumes-from $HOSTNAME <image> bash"
    mv "$PGDATA.new" "$PGDATA"
}

# Sets the roles and passwords at every start, so that they always match the secret files. Meanwhile the server listens
# only on its socket, so no client connects before that is done.
reconcile_roles() {
    [ -s "$SECRETS/mlflow-password" ] ||
        die "the secret $SECRETS/mlflow-password is missing or empty" \
            "to write it again, type: make up STACK=${STACK:-dev}"
    # A crash recovery runs here, and can take long.
    pg_ctl --pgdata="$PGDATA" --wait --timeout=3600 --silent \
        --options="-c listen_addresses='' -c hba_file=$CONFIG/pg_hba.conf" start
    psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username=postgres --dbname=postgres --file="$CONFIG/roles.sql" ||
        { pg_ctl --pgdata="$PGDATA" --mode=fast --silent stop && die "roles.sql failed; the error is above"; }
    pg_ctl --pgdata="$PGDATA" --wait --mode=fast --silent stop
}

# Postgres refuses a key that other users can read. Without TLS there is none.
use_key() {
    [ -e "$SECRETS/internal-key.pem" ] || return 0
    install -m 0600 "$SECRETS/internal-key.pem" "$SOCKETS/internal-key.pem"
}

# An interrupted upgrade leaves a folder beside an empty one: a new database there would hide the old one.
require_no_incomplete_upgrade() {
    [ ! -e "$PGDATA.incoming" ] && [ ! -e "$PGDATA.incoming.new" ] ||
        die "the move of the database to this Postgres version is not complete" \
            "to complete it, type: make upgrade-postgres STACK=${STACK:-dev}, with TO= as before"
}

main() {
    require_no_incomplete_upgrade
    [ -s "$PGDATA/PG_VERSION" ] || create_cluster
    reconcile_roles
    # assets/upgrade/move.sh must not replace a database that was in use.
    rm -f "$PGDATA.moved"
    use_key
    exec postgres "$@"
}

# The tests source this file and call single functions.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    main "$@"
fi
