#!/bin/sh
# usage: setup.sh before|after ROOT
set -eu

# Creates the database's user before Debian's package would create another, and prevents the package's cluster.
before() {
    echo 'postgres:x:999:' >>"$1/etc/group"
    echo 'postgres:x:999:999::/var/lib/postgresql:/bin/bash' >>"$1/etc/passwd"
    mkdir -p "$1/etc/postgresql-common/createcluster.d"
    echo 'create_main_cluster = false' >"$1/etc/postgresql-common/createcluster.d/none.conf"
}

after() {
    rm -rf "$1"/usr/lib/postgresql/17/lib/bitcode "$1"/usr/lib/postgresql/17/lib/llvmjit*
    rm -rf "$1"/usr/lib/*/libLLVM*.so* "$1"/usr/lib/*/libz3.so*
    # A new volume gets the owner of the folder at its mount point.
    install -d -o 999 -g 999 -m 0700 "$1/staging" "$1/repository"
}

"$1" "$2"
