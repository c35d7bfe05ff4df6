#!/bin/sh
# Copies every artifact from one object store to another, and proves that none is missing. May be cut off and run
# again: what is there already is not copied twice. Environment: BUCKET, SOURCE and TARGET
# (what they are called), MC_CONFIG_DIR.
set -eu

SECRETS=${SECRETS:-/run/secrets}

# Says what is wrong on stderr and ends. usage: die "what is wrong"
die() {
    echo "copy: $*" >&2
    exit 1
}

# Passes on the lines of a comparison, by name and size, but for those that only the new store has: they were there
# before, and are nobody's loss. In shell alone: the client's image may have no more.
without_what_is_new() {
    while IFS= read -r line; do
        case "$line" in
        '' | '> '*) ;;
        *) echo "$line" ;;
        esac
    done
}

main() {
    # mc writes into its configuration folder, and the secret is read-only.
    mkdir -p "$MC_CONFIG_DIR"
    cp "$SECRETS/mc-config.json" "$MC_CONFIG_DIR/config.json"
    mc --quiet mirror --overwrite "from/$BUCKET" "to/$BUCKET"
    differences=$(mc diff "from/$BUCKET" "to/$BUCKET") || die "the two could not be compared"
    missing=$(printf '%s\n' "$differences" | without_what_is_new)
    [ -z "$missing" ] || die "these differ after the copy:
$missing"
    echo "every artifact of $BUCKET has been copied from $SOURCE to $TARGET"
}

main "$@"
