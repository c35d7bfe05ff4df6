#!/bin/sh
# Creates the bucket and checks its access rights. Runs again whenever its configuration changes: every step is
# idempotent. Environment: ENDPOINT, BUCKET, GRPC.
set -eu

SECRETS=${SECRETS:-/run/secrets}

# Prints an error on stderr and exits. usage: die "what is wrong"
die() {
    echo "bootstrap: $*" >&2
    exit 1
}

# Prints the HTTP status of a request. IDENTITY is a curl configuration in $SECRETS that signs the request; without it,
# the request is anonymous. usage: status METHOD PATH [IDENTITY]
status() {
    curl --silent --output /dev/null --write-out '%{http_code}' --max-time 20 --retry 3 --retry-connrefused \
        --request "$1" --config "${3:+$SECRETS/}${3:-/dev/null}" "$ENDPOINT$2" || true
}

# Exits with an error unless a request returns STATUS. usage: expect STATUS "the error" METHOD PATH [IDENTITY]
expect() {
    wanted=$1
    otherwise=$2
    shift 2
    found=$(status "$@")
    [ "$found" = "$wanted" ] || die "$otherwise (HTTP $found to $1 $2, expected $wanted)"
}

# Prints the response to a request as the administrator. usage: get PATH
get() {
    curl --silent --fail --max-time 20 --config "$SECRETS/admin.curl" "$ENDPOINT$1"
}

# Exits if another bucket has objects: mlflow:objectStore.bucket may have changed. After a `make down`, only the object
# store knows the old name.
refuse_a_bucket_beside_the_artifacts() {
    [ "$(status GET "/$BUCKET/" admin.curl)" = 404 ] || return 0
    listed=$(get /) || die "the buckets could not be listed"
    printf '%s\n' "$listed" | grep -o '<Name>[^<]*' | while read -r line; do
        other=${line#<Name>}
        found=$(get "/$other/?max-keys=1") || die "the bucket $other could not be listed"
        case $found in
        *'<Key>'*)
            die "there is no bucket $BUCKET, and there are objects in $other: if they are the artifacts, go back to" \
                "mlflow:objectStore.bucket: $other, and type: make up STACK=$STACK; if not, create the bucket $BUCKET manually"
            ;;
        esac
    done
}

make_bucket() {
    found=$(status PUT "/$BUCKET" admin.curl)
    case "$found" in
    200 | 409) ;;
    *) die "the bucket $BUCKET could not be created (HTTP $found)" ;;
    esac
}

# Without its identities file, SeaweedFS accepts anonymous requests.
prove_access() {
    expect 403 "the object store accepts anonymous requests: it started without its identities. Type: make up STACK=$STACK" GET "/$BUCKET/"
    expect 200 "the identity mlflow cannot use its bucket" GET "/$BUCKET/" mlflow.curl
    expect 403 "the identity mlflow may create buckets" PUT "/$BUCKET-probe" mlflow.curl
    if [ -s "$SECRETS/mlflow-backup.curl" ]; then
        expect 200 "the identity mlflow-backup cannot read the bucket" GET "/$BUCKET/" mlflow-backup.curl
        expect 403 "the identity mlflow-backup may write" PUT "/$BUCKET/probe" mlflow-backup.curl
    fi
    # curl exits with 55 or 56 if the server uses TLS and closes the connection without a client certificate.
    # Without TLS, it exits with 35.
    closed=0
    curl --silent --output /dev/null --max-time 10 --retry 5 --retry-delay 1 --retry-connrefused --insecure "$GRPC/" ||
        closed=$?
    case "$closed" in
    55 | 56) ;;
    # A busy host may not answer: that says nothing about the certificate.
    6 | 7 | 28) die "$GRPC does not answer (curl: $closed), so it is unknown whether it requires a client certificate" ;;
    *) die "$GRPC does not require a client certificate (curl: $closed): anybody could become its administrator" ;;
    esac
}

main() {
    refuse_a_bucket_beside_the_artifacts
    make_bucket
    prove_access
    echo "bucket $BUCKET and identity mlflow are ready"
}

main "$@"
