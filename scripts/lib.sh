# Functions of the scripts: environments from the lock file, and updates of this board. Source this file.
PYTHON=${PYTHON:-python3}
UPDATES=/var/lib/vedette-update

# Extras of the environment for development.
DEV_EXTRAS=dev,demo,wakeword,charts,bundle,fleet,gpio
# Extras of the environment of `vedette optimise`, with PyTorch.
OPTIMISE_EXTRAS=dev,optimise

die() {
  echo "$*" >&2
  exit 1
}

# usage SCRIPT: prints the comment at the beginning of a script, and exits with 2. SCRIPT is its path in the clone: $0 may
# be relative to the caller's folder.
usage() {
  sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$1" >&2
  exit 2
}

# own_updates [SECONDS]: locks the updates of this board until this process ends, as OwnedFolder() in agent/storage.
own_updates() {
  install -d -m 700 "$UPDATES"
  exec 9<>"$UPDATES/lock"
  flock -w "${1:-0}" 9 ||
    die "$UPDATES: in use by another vedette, pid $(cat "$UPDATES/lock"): wait for it; see vedette update status"
  echo $$ >"$UPDATES/lock"
}

# at_hand: prints the state of the current update; nothing if it is over.
at_hand() {
  local state
  [ ! -e "$UPDATES/trial" ] || { echo trial; return; }
  [ -e "$UPDATES/journal.json" ] || return 0
  state=$(sed -n '/^[^"]*"state"/{s/^[^"]*"state" *: *"\([a-z_]*\)".*/\1/p;q}' "$UPDATES/journal.json")
  case $state in
    committed | rolled_back | refused) ;;
    *) echo "${state:-damaged}" ;;
  esac
}

# end_at_hand: deletes the files of a trial, so that the rollback watchdog does nothing. Keeps the journal.
end_at_hand() {
  local kept=$UPDATES/kept/vedette.toml config=/etc/vedette/vedette.toml
  if [ -f "$kept" ] && [ -f "$config" ] && ! cmp -s "$kept" "$config"; then
    mv -f "$kept" "$config.before"
    echo "an update had changed $config: the previous one is kept as $config.before" >&2
  fi
  rm -rf "$UPDATES"/{trial,verdict,deadman,order,reserve}{,.tmp} "$UPDATES"/kept/{vedette,a,b}.toml \
    "$UPDATES"/bundles/{,.}incoming.vedette*
}

# check_python: checks that $PYTHON is new enough and can create environments.
check_python() {
  command -v "$PYTHON" >/dev/null || die "no $PYTHON: install Python 3.11 or newer, or set PYTHON"
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$PYTHON is older than 3.11: set PYTHON to a newer one"
  "$PYTHON" -c 'import ensurepip' 2>/dev/null && return
  local package
  package=$("$PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || die "$PYTHON cannot create environments: sudo apt-get install $package"
  apt_install "$package"
}

apt_install() {
  echo "installing $*" >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null 2>&1 ||
    { apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null; } ||
    die "apt-get install $* failed"
}

# locked_uv FILE: prints the lines of a lock file about uv.
locked_uv() { awk '!/^ / {ours = /^uv==/} ours' "$1"; }

# install_torch FOLDER: installs PyTorch for the CPU (0.7 GB) from its own index. Where that does not answer, pip chooses:
# on x86-64 that may be the build for CUDA (6 GB).
install_torch() {
  local index=https://download.pytorch.org/whl/cpu from=()
  "$1/bin/python" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)' "$index/" 2>/dev/null &&
    from=(--index-url "$index")
  "$1/bin/pip" install --quiet --disable-pip-version-check ${from[@]+"${from[@]}"} \
    "$(grep -o 'torch>=[^"]*' pyproject.toml)"
}

# make_env FOLDER [EXTRA,...]: creates an environment with Vedette, editable, and these extras, unless it is up to date.
make_env() {
  local folder=$1 extras=${2:-} stamp
  check_python
  stamp=$({ cat requirements.lock pyproject.toml 2>/dev/null; "$PYTHON" -VV; echo "$PWD $extras"; } | sha256sum)
  [ "$(cat "$folder/.stamp" 2>/dev/null)" = "$stamp" ] && return
  echo "making $folder (once; a minute or so) …" >&2
  "$PYTHON" -m venv --clear "$folder"
  if [ -f requirements.lock ]; then
    locked_uv requirements.lock >"$folder/uv.lock"
    "$folder/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$folder/uv.lock"
    [[ ,$extras, != *,optimise,* ]] || install_torch "$folder"
    "$folder/bin/uv" pip install --quiet --python "$folder/bin/python" --constraints requirements.lock \
      --build-constraints requirements.lock --editable ".${extras:+[$extras]}"
  else
    "$folder/bin/pip" install --quiet --disable-pip-version-check uv
  fi
  echo "$stamp" >"$folder/.stamp"
}

# make_tflite_env: creates .venv-tflite with tflite-runtime instead of LiteRT, from its own list: its numpy is older than
# that of the lock file.
make_tflite_env() {
  local stamp
  check_python
  stamp=$({ cat tests/tflite.txt pyproject.toml; "$PYTHON" -VV; echo "$PWD"; } | sha256sum)
  [ "$(cat .venv-tflite/.stamp 2>/dev/null)" = "$stamp" ] && return
  "$PYTHON" -m venv --clear .venv-tflite
  .venv/bin/uv pip install --quiet --python .venv-tflite/bin/python -r tests/tflite.txt
  .venv/bin/uv pip install --quiet --python .venv-tflite/bin/python --no-deps --editable .
  echo "$stamp" >.venv-tflite/.stamp
}
