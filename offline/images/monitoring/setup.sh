#!/bin/sh
# usage: setup.sh before|after ROOT
set -eu

before() {
    :
}

# Creates the program names and data folders of the official images. A new volume gets the owner of the folder.
after() {
    for program in alertmanager blackbox-exporter postgres-exporter; do
        ln -s "/usr/bin/prometheus-$program" "$1/usr/local/bin/$(echo "$program" | tr - _)"
    done
    install -d -o 65534 -g 65534 "$1/prometheus" "$1/alertmanager"
}

"$1" "$2"
