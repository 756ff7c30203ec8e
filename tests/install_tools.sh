#!/usr/bin/env bash
# Install the Debian packages that some tests need and that are missing, or say what is.
set -euo pipefail

missing=() postgres=(/usr/lib/postgresql/*/bin/initdb)
[ -x "${postgres[0]}" ] || missing+=(postgresql)
command -v chromium >/dev/null || missing+=(chromium)
command -v redis-server >/dev/null || missing+=(redis-server)
command -v ip >/dev/null || missing+=(iproute2)
[ ${#missing[@]} -eq 0 ] && exit 0
install=(apt-get install --no-install-recommends)

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "some tests need what is not installed here: ${missing[*]}" >&2
  echo "install it: sudo ${install[*]} ${missing[*]}; or run the tests that need none of it: make test-fast" >&2
  exit 2
fi
echo "installing what some tests need: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet --quiet
"${install[@]}" --yes --quiet --quiet "${missing[@]}"
