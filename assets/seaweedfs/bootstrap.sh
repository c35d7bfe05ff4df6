#!/bin/sh
# Makes the bucket, and proves who may use it. Runs to its end each time that anything about it changes: every step
# may find its work done. Environment: ENDPOINT, BUCKET, GRPC.
set -eu

SECRETS=${SECRETS:-/run/secrets}

# Says what is wrong on stderr and ends. usage: die "what is wrong"
die() {
    echo "bootstrap: $*" >&2
    exit 1
}

# Prints the HTTP status of a request. An identity is a curl configuration in $SECRETS, which signs; without one,
# it is anonymous. usage: status METHOD PATH [IDENTITY]
status() {
    curl --silent --output /dev/null --write-out '%{http_code}' --max-time 20 --retry 3 --retry-connrefused \
        --request "$1" --config "${3:+$SECRETS/}${3:-/dev/null}" "$ENDPOINT$2" || true
}

# usage: expect STATUS "what it means otherwise" METHOD PATH [IDENTITY]
expect() {
    wanted=$1
    otherwise=$2
    shift 2
    found=$(status "$@")
    [ "$found" = "$wanted" ] || die "$otherwise (HTTP $found to $1 $2, expected $wanted)"
}

# usage: get PATH
get() {
    curl --silent --fail --max-time 20 --config "$SECRETS/admin.curl" "$ENDPOINT$1"
}

# After a `make down` nothing else knows which bucket it was.
refuse_a_bucket_beside_the_artifacts() {
    [ "$(status GET "/$BUCKET/" admin.curl)" = 404 ] || return 0
    listed=$(get /) || die "the buckets could not be listed"
    printf '%s\n' "$listed" | grep -o '<Name>[^<]*' | while read -r line; do
        other=${line#<Name>}
        found=$(get "/$other/?max-keys=1") || die "the bucket $other could not be listed"
        case $found in
        *'<Key>'*)
            die "there is no bucket $BUCKET, and there are objects in $other: if they are the artifacts, go back to" \
                "mlflow:objectStore.bucket: $other, and type: make up STACK=$STACK; if not, make the bucket $BUCKET by hand"
            ;;
        esac
    done
}

make_bucket() {
    found=$(status PUT "/$BUCKET" admin.curl)
    case "$found" in
    200 | 409) ;;
    *) die "the bucket $BUCKET could not be made (HTTP $found)" ;;
    esac
}

# An identities file that SeaweedFS did not find leaves it open to all the world.
prove_access() {
    expect 403 "the object store lets in anybody: it started without its identities. Type: make up STACK=$STACK" GET "/$BUCKET/"
    expect 200 "the identity mlflow cannot use its bucket" GET "/$BUCKET/" mlflow.curl
    expect 403 "the identity mlflow may make buckets" PUT "/$BUCKET-probe" mlflow.curl
    if [ -s "$SECRETS/mlflow-backup.curl" ]; then
        expect 200 "the identity mlflow-backup cannot read the bucket" GET "/$BUCKET/" mlflow-backup.curl
        expect 403 "the identity mlflow-backup may write" PUT "/$BUCKET/probe" mlflow-backup.curl
    fi
    # 55 and 56: it speaks TLS, and cut the connection for want of a certificate. Without TLS it would be 35.
    closed=0
    curl --silent --output /dev/null --max-time 10 --retry 5 --retry-delay 1 --retry-connrefused --insecure "$GRPC/" ||
        closed=$?
    case "$closed" in
    55 | 56) ;;
    # Of a host that is busy with something else it says nothing.
    6 | 7 | 28) die "$GRPC does not answer (curl: $closed), so it is not known whether it insists on a certificate" ;;
    *) die "$GRPC does not insist on a certificate (curl: $closed): anybody could make himself an administrator there" ;;
    esac
}

main() {
    refuse_a_bucket_beside_the_artifacts
    make_bucket
    prove_access
    echo "bucket $BUCKET and identity mlflow are ready"
}

main "$@"
