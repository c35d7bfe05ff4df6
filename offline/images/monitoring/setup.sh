#!/bin/sh
# usage: setup.sh before|after ROOT
set -eu

before() {
    :
}

# The official images' names of the programs, and their folders, whose owner a new volume takes over.
after() {
    for program in alertmanager blackbox-exporter postgres-exporter; do
        ln -s "/usr/bin/prometheus-$program" "$1/usr/local/bin/$(echo "$program" | tr - _)"
    done
    install -d -o 65534 -g 65534 "$1/prometheus" "$1/alertmanager"
}

"$1" "$2"
