#!/bin/bash
# Copies the database to another Postgres and compares both. Runs in the Postgres image. usage: database.sh check|copy
# Environment: SOURCE_HOST, SOURCE_SSLMODE, and PGHOST, PGPORT, PGDATABASE, PGUSER, PGSSLMODE of the target. Beside this
# script are the passwords, source.pgpass and target.pgpass, and, if the source speaks TLS, its authority, authority.pem.
set -Eeuo pipefail
umask 077

FILES=$(dirname "$0")
WORK=${WORK:-/tmp}
OURS="table_schema = 'public' AND table_type = 'BASE TABLE'"

# Prints an error on stderr and exits. usage: die "what is wrong" "what to do"
die() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

# Run a client program for the database of the stack, and for the target.
source_db() {
    PGHOST=$SOURCE_HOST PGPORT=5432 PGUSER=mlflow PGDATABASE=mlflow PGSSLMODE=$SOURCE_SSLMODE \
        PGSSLROOTCERT="$FILES/authority.pem" PGPASSFILE="$FILES/source.pgpass" "$@"
}
target_db() {
    PGPASSFILE="$FILES/target.pgpass" "$@"
}

# Refuses a target that cannot be used, or that has tables.
check() {
    local tables
    target_db psql -Atqc "SELECT 1" >/dev/null || die "cannot use the database $PGDATABASE on $PGHOST:$PGPORT as $PGUSER"
    # Not information_schema, which leaves out tables that the user may not read.
    tables=$(target_db psql -Atqc "SELECT count(*) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
        WHERE relkind IN ('r', 'p', 'v', 'm') AND nspname !~ '^pg_' AND nspname <> 'information_schema'")
    [ "$tables" = 0 ] || die "the database $PGDATABASE on $PGHOST has $tables tables; set an empty one"
    [ "$(target_db psql -Atqc "SELECT has_schema_privilege('public', 'CREATE')")" = t ] ||
        die "$PGUSER may not create tables in the schema public of $PGDATABASE" \
            "make it the owner: ALTER DATABASE \"$PGDATABASE\" OWNER TO \"$PGUSER\""
    echo "the target is Postgres $(target_db psql -Atqc "SHOW server_version"), the source $(source_db psql -Atqc "SHOW server_version")"
}

# Prints for each table its name, its number of rows, and a sum over all rows that does not depend on their order.
fingerprint() {
    "$1" psql -Atqc "SELECT format('SELECT %L, count(*), coalesce(sum((''x'' || substr(md5(t::text), 1, 15))::bit(60)::bigint), 0) FROM public.%I t;', table_name, table_name) FROM information_schema.tables WHERE $OURS ORDER BY table_name" >"$WORK/queries.$1"
    "$1" psql -Atq --no-psqlrc --set ON_ERROR_STOP=1 --file "$WORK/queries.$1"
}

# Prints the database as one transaction, which ends only if the dump is complete: psql commits an incomplete one.
transaction() {
    echo "BEGIN;"
    # A Postgres before 17 does not know the parameter.
    source_db pg_dump --no-owner --no-privileges --exclude-schema='before_restore*' \
        --exclude-schema='before_import*' --exclude-schema=monitoring |
        sed '1,30{/^SET transaction_timeout/d}'
    echo "COMMIT;"
}

copy() {
    transaction | target_db psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --output /dev/null
    fingerprint source_db >"$WORK/source.rows"
    fingerprint target_db >"$WORK/target.rows"
    [ "$(wc -l <"$WORK/source.rows")" = "$(wc -l <"$WORK/queries.source_db")" ] || die "not every table could be compared"
    diff "$WORK/source.rows" "$WORK/target.rows" >&2 || die "these tables differ after the copy: name, rows, sum"
    awk -F '|' '{rows += $2} END {print NR " tables with " rows " rows are equal in both databases"}' "$WORK/source.rows"
}

_main() {
    # The same text for the same value in both databases.
    export PGOPTIONS="-c timezone=UTC -c datestyle=ISO -c extra_float_digits=1" PGCONNECT_TIMEOUT=10
    "$1"
}

_main "$@"
