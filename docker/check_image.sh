#!/usr/bin/env bash
# Build the service's image from docker/Dockerfile, start it, and ask it: with buildah alone, where there
# is neither a container engine nor a registry. Run as root, from anywhere:
#   apt-get install buildah debootstrap && docker/check_image.sh
# The two outside images are stood in for: python's by Debian bookworm with its own Python 3.11, uv's by
# the uv of .venv. Packages come from PyPI, as in every build. About 3 GB of a temporary folder; removed.
set -euo pipefail
cd "$(dirname "$0")/.."

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

stand_in_for_python
stand_in_for_uv
buildah_here build --format docker --pull-never --target service --tag simclr-service \
  --file docker/Dockerfile --ignorefile docker/Dockerfile.dockerignore .

container=$(buildah_here from --pull-never simclr-service)
buildah_here inspect --type image --format 'user {{.Docker.Config.User}}, health {{.Docker.Config.Healthcheck.Test}}' simclr-service
echo "files in /opt/simclr: $(buildah_here run "$container" du -sm /opt/simclr | cut -f1) MB"
buildah_here run --env SIMCLR_PORT=18000 --env "SIMCLR_BOOTSTRAP_TOKEN=simclr_$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')" \
  --env SIMCLR_RAY_ADDRESS=http://127.0.0.1:9 --env SIMCLR_MLFLOW_URI=http://127.0.0.1:9 \
  "$container" python - <"docker/ask_image.py"
