#!/bin/sh
# Creates the bucket and checks its access rights. Runs again whenever its configuration changes: every step is
# idempotent. Environment: ENDPOINT, BUCKET, GRPC; with a data key, ENCRYPTION (on or off).
set -eu

SECRETS=${SECRETS:-/run/secrets}
CHECK=mlflow-encryption-check # a bucket, and its only object, which is encrypted
SSE='<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256</SSEAlgorithm></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>'
WRONG_KEY="mlflow:objectStoreKey does not decrypt the artifacts of this store; set the old value again: docs/operations/restore.md#set-a-data-key-from-a-backup"

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
        [ "$other" != "$CHECK" ] || continue
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

# Sets whether the store encrypts new artifacts, and checks that it still decrypts what it once encrypted: another key
# would make every artifact unreadable. Without the variable ENCRYPTION, the store has no key.
check_encryption() {
    if [ -z "${ENCRYPTION:-}" ]; then
        [ "$(status GET "/$CHECK/$CHECK" admin.curl)" != 500 ] || die "$WRONG_KEY"
        return 0
    fi
    encrypt_new_objects "$CHECK"
    case $(status GET "/$CHECK/$CHECK" admin.curl) in
    404) curl --silent --fail --max-time 20 --config "$SECRETS/admin.curl" --request PUT --data-binary "$CHECK" "$ENDPOINT/$CHECK/$CHECK" ||
        die "the store does not encrypt: $CHECK could not be written" ;;
    esac
    [ "$(get "/$CHECK/$CHECK")" = "$CHECK" ] || die "$WRONG_KEY"
    case $(curl --silent --fail --max-time 20 --config "$SECRETS/admin.curl" --head "$ENDPOINT/$CHECK/$CHECK" | tr -d '\r') in
    *[Ss]erver-[Ss]ide-[Ee]ncryption:*AES256*) ;;
    *) die "the store does not encrypt new objects, although mlflow:objectStore.encryption was set" ;;
    esac
    if [ "$ENCRYPTION" = on ]; then
        encrypt_new_objects "$BUCKET"
    else
        status DELETE "/$BUCKET?encryption=" admin.curl >/dev/null
    fi
}

# usage: encrypt_new_objects BUCKET
encrypt_new_objects() {
    found=$(status PUT "/$1" admin.curl)
    case "$found" in
    200 | 409) ;;
    *) die "the bucket $1 could not be created (HTTP $found)" ;;
    esac
    curl --silent --fail --max-time 20 --config "$SECRETS/admin.curl" --request PUT --data-binary "$SSE" \
        "$ENDPOINT/$1?encryption=" >/dev/null || die "the bucket $1 cannot be encrypted"
}

main() {
    refuse_a_bucket_beside_the_artifacts
    make_bucket
    check_encryption
    prove_access
    echo "bucket $BUCKET and identity mlflow are ready"
}

main "$@"
