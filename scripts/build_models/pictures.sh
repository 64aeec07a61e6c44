# Fetches the calibration pictures of the models for cameras; their checksums are in pictures.sha256. Sourced.

# needs COMMAND ADVICE: ends with the advice if there is no such command.
needs() {
  command -v "$1" >/dev/null || die "no $1: $2"
}

# matches LIST: whether the files in $inputs are those of scripts/build_models/LIST.
matches() {
  (cd "$inputs" && sha256sum --check --status "$OLDPWD/scripts/build_models/$1" 2>/dev/null)
}

# ensure LIST FETCH: calls FETCH unless the files of LIST are there already, and ends if they are not what it expects.
ensure() {
  mkdir -p "$inputs"
  matches "$1" || "$2"
  matches "$1" || die "$inputs is not what scripts/build_models/$1 expects: a package has changed; sha256sum -c names the files"
}

# Calibration pictures: OpenCV's samples, as Debian packages them, and those inside two Python packages.
fetch_pictures() {
  needs apt-get "the calibration pictures come from a Debian package, so this runs on Debian"
  echo "fetching calibration pictures (120 MB) …" >&2
  (cd "$build" && { apt-get download -qq opencv-doc || { apt-get update -qq && apt-get download -qq opencv-doc; }; })
  rm -rf "$inputs/opencv" "$inputs/usr"
  dpkg-deb --fsys-tarfile "$build"/opencv-doc_*.deb | tar -x -C "$inputs" ./usr/share/doc/opencv-doc/examples/data
  mv "$inputs/usr/share/doc/opencv-doc/examples/data" "$inputs/opencv"
  "$build/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$build" \
    scikit-image==0.26.0 scikit-learn==1.9.1
  "$PYTHON" -m zipfile -e "$build"/scikit_image-*.whl "$inputs"
  "$PYTHON" -m zipfile -e "$build"/scikit_learn-*.whl "$inputs"
  rm "$build"/opencv-doc_*.deb "$build"/scikit_*.whl
}
