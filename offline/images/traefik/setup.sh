#!/bin/sh
# usage: setup.sh before|after ROOT. The programs from the wheels are in $WHEELS.
set -eu

before() {
    :
}

after() {
    install -m 0755 "$WHEELS/traefik" "$1/usr/local/bin/traefik"
}

"$1" "$2"
