#!/bin/sh
# Creates the bucket and the identities that may use it, and checks that MinIO refuses its default credentials. Runs
# again whenever its configuration changes: every step is idempotent. Environment: ENDPOINT, BUCKET, MC_CONFIG_DIR.
set -eu

CONFIG=${CONFIG:-/run/config}
SECRETS=${SECRETS:-/run/secrets}
CHECK=mlflow-encryption-check # a bucket, and its only object, which is encrypted
WRONG_KEY="mlflow:objectStoreKey does not decrypt the artifacts of this store; set the old value again: docs/operations/restore.md#set-a-data-key-from-a-backup"

# Prints an error on stderr and exits. usage: die "what is wrong"
die() {
    echo "bootstrap: $*" >&2
    exit 1
}

# Copies the configuration, because mc writes into its folder and the secret file is read-only.
use_root_credentials() {
    mkdir -p "$MC_CONFIG_DIR"
    cp "$SECRETS/mc-config.json" "$MC_CONFIG_DIR/config.json"
    [ ! -e "$SECRETS/authority.pem" ] || install -D -m 0600 "$SECRETS/authority.pem" "$MC_CONFIG_DIR/certs/CAs/authority.pem"
}

# MinIO is configured with another root user, and does not start without that user's password. This checks it.
refuse_default_credentials() {
    if MC_HOST_default="${ENDPOINT%%//*}//minioadmin:minioadmin@${ENDPOINT#*//}" mc --quiet ls default >/dev/null 2>&1; then
        die "the object store accepts minioadmin:minioadmin, although its root user is another: remove the user" \
            "minioadmin, or set mlflow:images.minio to MinIO's own image; then type: make up STACK=$STACK"
    fi
}

# Exits if another bucket has objects: mlflow:objectStore.bucket may have changed. After a `make down`, only the object
# store knows the old name.
refuse_a_bucket_beside_the_artifacts() {
    listed=$(mc --quiet ls store)
    case "$listed" in
    '' | *" $BUCKET/"*) return ;;
    esac
    printf '%s\n' "$listed" | while read -r line; do
        other=${line##* }
        [ "$other" != "$CHECK/" ] || continue
        [ -z "$(mc --quiet ls "store/$other")" ] ||
            die "there is no bucket $BUCKET, and there are objects in ${other%/}: if they are the artifacts, go back to" \
                "mlflow:objectStore.bucket: ${other%/}, and type: make up STACK=$STACK; if not, create the bucket $BUCKET manually"
    done
}

make_bucket() {
    mc --quiet mb --ignore-existing "store/$BUCKET"
    mc --quiet anonymous set none "store/$BUCKET"
}

# Sets whether the store encrypts new artifacts, and checks that it still decrypts what it once encrypted: another key
# would make every artifact unreadable. Without the variable ENCRYPTION, the store has no key.
check_encryption() {
    there=$(mc --quiet ls "store/$CHECK/$CHECK" 2>/dev/null) || there=
    if [ -n "${ENCRYPTION:-}" ] && [ -z "$there" ]; then
        mc --quiet mb --ignore-existing "store/$CHECK"
        mc --quiet encrypt set sse-s3 "store/$CHECK"
        printf %s "$CHECK" | mc --quiet pipe "store/$CHECK/$CHECK" >/dev/null
        there=yes
    fi
    [ -z "$there" ] || [ "$(mc --quiet cat "store/$CHECK/$CHECK")" = "$CHECK" ] || die "$WRONG_KEY"
    case "${ENCRYPTION:-}" in
    on) mc --quiet encrypt set sse-s3 "store/$BUCKET" ;;
    off) mc --quiet encrypt clear "store/$BUCKET" ;;
    esac
}

# Creates an identity with the policy of the same name, or removes the identity if it has no secret.
# usage: reconcile_identity NAME
reconcile_identity() {
    if [ ! -s "$SECRETS/$1-secret-key" ]; then
        mc --quiet admin user remove store "$1" >/dev/null 2>&1 || true
        return
    fi
    mc --quiet admin policy create store "$1" "$CONFIG/$1-policy.json"
    # Passes the secret key through stdin: the process list shows arguments.
    printf '%s\n%s\n' "$1" "$(cat "$SECRETS/$1-secret-key")" | mc --quiet admin user add store
    attached=$(mc --json admin user info store "$1")
    case "$attached" in
    *"\"policyName\":\"$1\""*) ;;
    *) mc --quiet admin policy attach store "$1" --user "$1" ;;
    esac
}

main() {
    use_root_credentials
    refuse_default_credentials
    refuse_a_bucket_beside_the_artifacts
    make_bucket
    check_encryption
    reconcile_identity mlflow
    reconcile_identity mlflow-backup
    reconcile_identity mlflow-monitoring
    echo "bucket $BUCKET and identity mlflow are ready"
}

main "$@"
