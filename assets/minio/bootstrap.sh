#!/bin/sh
# Makes the bucket and the identity that may use it, and proves that nobody else may. Runs to its end each time that
# anything about it changes: every step may find its work done. Environment: ENDPOINT, BUCKET, MC_CONFIG_DIR.
set -eu

CONFIG=${CONFIG:-/run/config}
SECRETS=${SECRETS:-/run/secrets}

# Says what is wrong on stderr and ends. usage: die "what is wrong"
die() {
    echo "bootstrap: $*" >&2
    exit 1
}

# mc writes into its configuration folder, and the secret is read-only.
use_root_credentials() {
    mkdir -p "$MC_CONFIG_DIR"
    cp "$SECRETS/mc-config.json" "$MC_CONFIG_DIR/config.json"
}

# MinIO was given another root user, and would not start without its password. This is the proof.
refuse_default_credentials() {
    if MC_HOST_default="http://minioadmin:minioadmin@${ENDPOINT#http://}" mc --quiet ls default >/dev/null 2>&1; then
        die "the object store accepts minioadmin:minioadmin, though it was given another root user:" \
            "remove the user minioadmin, or go back to MinIO's own image in mlflow:images.minio; then type: make up STACK=$STACK"
    fi
}

# After a `make down` nothing else knows which bucket it was.
refuse_a_bucket_beside_the_artifacts() {
    listed=$(mc --quiet ls store)
    case "$listed" in
    '' | *" $BUCKET/"*) return ;;
    esac
    printf '%s\n' "$listed" | while read -r line; do
        other=${line##* }
        [ -z "$(mc --quiet ls "store/$other")" ] ||
            die "there is no bucket $BUCKET, and there are objects in ${other%/}: if they are the artifacts, go back to" \
                "mlflow:objectStore.bucket: ${other%/}, and type: make up STACK=$STACK; if not, make the bucket $BUCKET by hand"
    done
}

make_bucket() {
    mc --quiet mb --ignore-existing "store/$BUCKET"
    mc --quiet anonymous set none "store/$BUCKET"
}

# An identity with the policy of its name, as long as there is a secret for it.
# usage: reconcile_identity NAME
reconcile_identity() {
    if [ ! -s "$SECRETS/$1-secret-key" ]; then
        mc --quiet admin user remove store "$1" >/dev/null 2>&1 || true
        return
    fi
    mc --quiet admin policy create store "$1" "$CONFIG/$1-policy.json"
    # The secret key comes through stdin: an argument would be in the process list.
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
    reconcile_identity mlflow
    reconcile_identity mlflow-backup
    reconcile_identity mlflow-monitoring
    echo "bucket $BUCKET and identity mlflow are ready"
}

main "$@"
