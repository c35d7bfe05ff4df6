#!/bin/sh
# Removes files that a server never reads from a virtual environment. usage: trim.sh /opt/mlflow
set -eu

main() {
    site=$(echo "$1"/lib/python3.*/site-packages)

    # botocore has a model of every AWS service. The server uses S3, and STS is part of its credential chain.
    find "$site/botocore/data" -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name sts -exec rm -r {} +
    # The tests of the numeric packages are as large as the packages. numpy.testing stays: pandas imports it.
    for package in numpy pandas; do
        find "$site/$package" -type d -name tests -prune -exec rm -r {} +
    done
    # The web interface's source maps are for MLflow's developers only.
    find "$site/mlflow/server/js" -name '*.map' -delete
    # Nothing is installed at run time.
    rm -r "$site"/pip "$site"/pip-*.dist-info "$1"/bin/pip*
}

main "$@"
