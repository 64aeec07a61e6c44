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

# Pictures of people, inside two Python packages and one of npm; used to calibrate, and not passed on.
fetch_people() {
  needs npm "sudo apt-get install npm"
  echo "fetching pictures of people (17 MB) …" >&2
  local package
  "$build/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$build" \
    ultralytics==8.4.190
  "$PYTHON" -m zipfile -e "$build"/ultralytics-8.4.190-*.whl "$inputs"
  "$build/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest "$build" \
    face_recognition==1.3.0
  tar -xzf "$build"/face_recognition-1.3.0.tar.gz -C "$inputs" face_recognition-1.3.0/tests/test_images
  package=$(npm pack --silent --pack-destination "$build" @vladmandic/face-api@1.7.15)
  tar -xzf "$build/$package" -C "$inputs" package/demo
  rm "$build"/ultralytics-8.4.190-*.whl "$build"/face_recognition-1.3.0.tar.gz "$build/$package"
}
