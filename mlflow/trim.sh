#!/bin/sh
# Removes from the virtual environment $1 what a server never reads. usage: trim.sh /opt/mlflow
set -eu

main() {
    site=$(echo "$1"/lib/python3.*/site-packages)

    # botocore carries a model of every AWS service; the server talks to S3, and STS belongs to its credential chain.
    find "$site/botocore/data" -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name sts -exec rm -r {} +
    # Test suites of the numeric packages are as large as the packages. numpy.testing stays: pandas imports it.
    for package in numpy pandas; do
        find "$site/$package" -type d -name tests -prune -exec rm -r {} +
    done
    # Source maps of the web interface are for MLflow's developers.
    find "$site/mlflow/server/js" -name '*.map' -delete
    # Nothing is installed at run time.
    rm -r "$site"/pip "$site"/pip-*.dist-info "$1"/bin/pip*
}

main "$@"
