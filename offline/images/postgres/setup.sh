#!/bin/sh
# usage: setup.sh before|after ROOT
set -eu

# Creates the official image's user before Debian's package would create another, and prevents the package's cluster.
before() {
    echo 'postgres:x:999:' >>"$1/etc/group"
    echo 'postgres:x:999:999::/var/lib/postgresql:/bin/bash' >>"$1/etc/passwd"
    mkdir -p "$1/etc/postgresql-common/createcluster.d"
    echo 'create_main_cluster = false' >"$1/etc/postgresql-common/createcluster.d/none.conf"
}

after() {
    # Removes the JIT compiler: it is for large queries, which MLflow does not have, and is a third of the image.
    rm -rf "$1"/usr/lib/postgresql/17/lib/bitcode "$1"/usr/lib/postgresql/17/lib/llvmjit*
    rm -rf "$1"/usr/lib/*/libLLVM*.so* "$1"/usr/lib/*/libz3.so*
    install -d -o 999 -g 999 -m 1777 "$1/var/lib/postgresql"
}

"$1" "$2"
