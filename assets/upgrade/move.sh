#!/bin/bash
# Fills the data volume of a new Postgres with the database of the one that runs, and compares both. Runs in the new
# image, with the volumes of the old container but its data. usage: move.sh check|move
#
# `check` fails if the new volume has a database that was in use: after a way back, what was written to it is only there.
# Environment: PGDATA, SOURCE_HOST, SOURCE_SSLMODE; beside this script are pgpass and, with TLS, authority.pem.
set -Eeuo pipefail
umask 077

FILES=$(dirname "$0")
# shellcheck disable=SC1091 # the stack's own script, which is mounted at run time
. /run/config/start.sh

FINAL=$PGDATA
# Beside a database that was moved here and that no server has used yet. start.sh removes it.
UNUSED=$FINAL.moved
# start.sh refuses to start while this folder exists: an incomplete move is never taken for a database.
export PGDATA=$FINAL.incoming

# Run a client program for the old database, and for the new one.
old_db() {
    PGHOST=$SOURCE_HOST PGUSER=mlflow PGDATABASE=mlflow PGSSLMODE=$SOURCE_SSLMODE PGSSLROOTCERT="$FILES/authority.pem" \
        PGPASSFILE="$FILES/pgpass" "$@"
}
new_db() {
    PGHOST=$SOCKETS PGUSER=postgres PGDATABASE=mlflow "$@"
}

# Prints for each table of each schema its name, its number of rows, and a sum over all rows in any order.
fingerprint() {
    "$1" psql -Atq --no-psqlrc --set ON_ERROR_STOP=1 <<'SQL' >"/tmp/queries.$1"
SELECT format('SELECT %L, count(*), coalesce(sum((''x'' || substr(md5(t::text), 1, 15))::bit(60)::bigint), 0) FROM %I.%I t;',
    table_schema || '.' || table_name, table_schema, table_name)
FROM information_schema.tables
WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema', 'monitoring')
ORDER BY table_schema, table_name
SQL
    "$1" psql -Atq --no-psqlrc --set ON_ERROR_STOP=1 --file "/tmp/queries.$1"
}

# Prints the old database as one transaction, which ends only if the dump is complete. The monitoring schema is the
# superuser's, and start.sh has created it. Postgres 17.12 stores an option of each column (pg_attver) that a pg_dump of
# an earlier minor release prints and a server of one refuses.
transaction() {
    echo "BEGIN;"
    old_db pg_dump --no-owner --no-privileges --exclude-schema=monitoring |
        sed -E '1,100{/^CREATE SCHEMA public;$/d}
            /^COPY .* FROM stdin;$/,/^\\\.$/b
            /^ALTER TABLE ONLY .* SET \(pg_attver=[0-9]+\);$/d'
    echo "COMMIT;"
}

check() {
    [ ! -s "$FINAL/PG_VERSION" ] || [ -e "$UNUSED" ]
}

move() {
    # First: from now on, this volume is not taken for one with a database.
    mkdir -p "$PGDATA"
    rm -rf "$PGDATA.new" "$FINAL" "$UNUSED"
    rm -rf "${PGDATA:?}"/*
    # Their output is that of a start, and only confuses if all goes well.
    exec 3>&1 4>&2 >/tmp/start.log 2>&1
    trap 'cat /tmp/start.log >&4' EXIT
    create_cluster
    reconcile_roles
    exec >&3 2>&4
    trap - EXIT
    pg_ctl --pgdata="$PGDATA" --wait --timeout=3600 --silent --log=/tmp/log \
        --options="-c listen_addresses='' -c hba_file=$CONFIG/pg_hba.conf -c fsync=off" start ||
        { cat /tmp/log >&2 && die "the new database did not start"; }
    # As the owner of the database, who owns all its tables.
    transaction | PGOPTIONS="-c role=mlflow" new_db psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --output /dev/null
    export PGOPTIONS="-c timezone=UTC -c datestyle=ISO -c extra_float_digits=1"
    fingerprint old_db >/tmp/old.rows
    fingerprint new_db >/tmp/new.rows
    diff /tmp/old.rows /tmp/new.rows >&2 || die "these tables differ after the move: name, rows, sum"
    unset PGOPTIONS
    new_db vacuumdb --analyze-only --quiet
    pg_ctl --pgdata="$PGDATA" --wait --mode=fast --silent stop
    # What was written without fsync, before the folder gets the name of a complete database.
    sync
    touch "$UNUSED"
    mv "$PGDATA" "$FINAL"
    sync
    awk -F '|' '{rows += $2} END {print NR " tables with " rows " rows are equal in both versions"}' /tmp/old.rows
}

"$1"
