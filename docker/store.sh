#!/bin/sh
# Prints docker/MLproject's mount of the store: the folder of a SQLite database, where mlruns/ is too, at its own path.
# Of a tracking server, which needs none, it is the repository.
set -eu

case $MLFLOW_TRACKING_URI in
sqlite:////*)
    folder=$(dirname "${MLFLOW_TRACKING_URI#sqlite:///}")
    # MLflow mounts this folder, and Docker would make it as root: nobody else could write into it.
    mkdir -p "$folder/mlruns/$MLFLOW_EXPERIMENT_ID/$MLFLOW_RUN_ID/artifacts"
    ;;
sqlite:*)
    echo "error: '$MLFLOW_TRACKING_URI' is a relative address; inside it would be another: give an absolute one." >&2
    exit 1
    ;;
*)
    folder=$(cd .. && pwd)
    ;;
esac
echo "$folder:$folder"
