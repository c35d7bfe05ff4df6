#!/bin/sh
# usage: setup.sh before|after ROOT
set -eu

# Before Debian's package makes a user and a cluster of its own: the database's user, and no cluster.
before() {
    echo 'postgres:x:999:' >>"$1/etc/group"
    echo 'postgres:x:999:999::/var/lib/postgresql:/bin/bash' >>"$1/etc/passwd"
    mkdir -p "$1/etc/postgresql-common/createcluster.d"
    echo 'create_main_cluster = false' >"$1/etc/postgresql-common/createcluster.d/none.conf"
}

after() {
    rm -rf "$1"/usr/lib/postgresql/17/lib/bitcode "$1"/usr/lib/postgresql/17/lib/llvmjit*
    rm -rf "$1"/usr/lib/*/libLLVM*.so* "$1"/usr/lib/*/libz3.so*
    # A new volume takes the owner of the folder that it covers.
    install -d -o 999 -g 999 -m 0700 "$1/staging" "$1/repository"
}

"$1" "$2"
