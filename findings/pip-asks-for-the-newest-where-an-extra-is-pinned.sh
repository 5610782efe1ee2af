#!/usr/bin/env bash
# Package: pip 23.2.1 and pip 24.0 (PyPI), with arq 0.28.0, which asks for `redis[hiredis]>=4.2.0,<6`.
# Behaviour: a complete lock with hashes that says `redis==5.2.1` and hiredis is refused by pip 23.2.1 as soon as a newer
#   redis 5 exists: to it, `redis[hiredis]` is another requirement than the pinned `redis`, and it looks at the newest one,
#   which has no hash. So a lock that worked breaks on the day of a release. pip 24.0 installs it; both do with the extra
#   spelled in the lock, `redis[hiredis]==5.2.1`.
# For us: locks keep their extras (uv: --no-strip-extras); Debian 12 and Python 3.11 still bring such a pip.
# Seen: redis==5.2.1 in the lock: pip 23.2.1 refuses, pip 24.0 installs; redis[hiredis]==5.2.1: installs, installs
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
pip() { "$dir/venv/bin/python" -m pip "$@" --quiet --disable-pip-version-check; }
pip install pip==24.0
pip download --dest "$dir/wheels" arq==0.28.0 redis==5.2.1
for wheel in "$dir/wheels"/*; do
  IFS=- read -r name version _ <<<"${wheel##*/}"
  echo "${name//_/-}==$version --hash=sha256:$(sha256sum "$wheel" | cut -d' ' -f1)"
done >"$dir/plain"
sed 's/^redis==/redis[hiredis]==/' "$dir/plain" >"$dir/extras"
try() {
  if pip install --dry-run --require-hashes -r "$dir/$1" >/dev/null 2>"$dir/said"; then
    echo installs
  elif grep -q 'versions pinned with ==' "$dir/said"; then
    echo refuses
  else
    echo failed
  fi
}
new="$(try plain) $(try extras)"
pip install pip==23.2.1
old="$(try plain) $(try extras)"
echo "redis==5.2.1 in the lock: pip 23.2.1 ${old% *}, pip 24.0 ${new% *}; redis[hiredis]==5.2.1: ${old#* }, ${new#* }"
[[ "$old $new" == "refuses installs installs installs" ]]
