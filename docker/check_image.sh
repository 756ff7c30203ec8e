#!/usr/bin/env bash
# Build an image of docker/Dockerfile, start it, and ask it: with buildah alone, where there is neither a
# container engine nor a registry. Run as root, from anywhere:
#   apt-get install buildah debootstrap && docker/check_image.sh [service|mlflow|trainer [cpu|cuda]]
# The two outside images are stood in for: python's by Debian bookworm with its own Python 3.11, uv's by
# the uv of .venv. Packages come from PyPI, as in every build, and torch for `cpu` from PyTorch's index.
# About 3 GB of a temporary folder, for `cuda` ten times that; removed.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-service}
variant=${2:-cpu}

work=$(mktemp -d /var/tmp/simclr-image.XXXXXX)
trap 'buildah_here umount --all >/dev/null; rm -rf "$work"' EXIT
export BUILDAH_ISOLATION=chroot # needs no namespaces

buildah_here() {
  buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"
}

# The image that the Dockerfile names for a stage.
outside() {
  sed -nE "s/^FROM (\S+) AS $1$/\1/p" docker/Dockerfile
}

stand_in_for_python() {
  local container root
  container=$(buildah_here from scratch)
  root=$(buildah_here mount "$container")
  debootstrap --variant=minbase --include=python3,ca-certificates bookworm "$root" >"$work/debootstrap.log"
  ln -s /usr/bin/python3.11 "$root/usr/local/bin/python"
  # Whom this machine trusts, the build trusts: there may be a proxy on the way to PyPI.
  cp --dereference /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
  buildah_here config --env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt "$container"
  buildah_here commit --quiet --rm "$container" "$(outside base)"
}

stand_in_for_uv() {
  local container
  container=$(buildah_here from scratch)
  buildah_here copy --quiet "$container" .venv/bin/uv /uv
  buildah_here commit --quiet --rm "$container" "$(outside uv)"
}

# Run what is fed to it, in Python inside the image.
python_in_image() {
  buildah_here run --env SIMCLR_PORT=18000 \
    --env "SIMCLR_BOOTSTRAP_TOKEN=simclr_$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')" \
    --env SIMCLR_RAY_ADDRESS=http://127.0.0.1:9 --env SIMCLR_MLFLOW_URI=http://127.0.0.1:9 \
    --env MLFLOW_FLASK_SERVER_SECRET_KEY=of-this-check --env MLFLOW_AUTH_ADMIN_PASSWORD=only-of-this-check \
    --env MLFLOW_BACKEND_STORE_URI=sqlite:////tmp/mlflow.db \
    "$container" python - "$@"
}

stand_in_for_python
stand_in_for_uv
buildah_here build --format docker --pull-never --target "$target" --build-arg "TORCH_VARIANT=$variant" \
  --tag "simclr-$target" --file docker/Dockerfile --ignorefile docker/Dockerfile.dockerignore .

container=$(buildah_here from --pull-never "simclr-$target")
buildah_here inspect --type image --format 'user {{.Docker.Config.User}}, health {{.Docker.Config.Healthcheck.Test}}' "simclr-$target"
echo "files in /opt/simclr: $(buildah_here run "$container" du -sm /opt/simclr | cut -f1) MB"
case $target in
  service) python_in_image <docker/ask_image.py ;;
  mlflow) python_in_image http://127.0.0.1:5000/health mlflow server --app-name basic-auth --port 5000 <docker/start_image.py ;;
  trainer)
    python_in_image http://127.0.0.1:52365/api/local_raylet_healthz \
      ray start --head --block --num-cpus=1 --node-ip-address=127.0.0.1 <docker/start_image.py
    ;;
esac
