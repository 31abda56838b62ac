#!/usr/bin/env bash
# Make a base image of Debian's packages, where no registry of images can be reached. Needs root.
# Usage: base.sh NAME FOLDER; BUILDAH is its command with options. FOLDER keeps the packed base.
set -euo pipefail
name=$1 folder=$2
release=${RELEASE:-bookworm}
missing=()
command -v buildah >/dev/null || missing+=(buildah)
command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "needs ${missing[*]}, and can install it only as root on Debian or Ubuntu" >&2
    exit 1
  fi
  apt-get update -qq
  apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi
export TMPDIR="$folder"
if [ ! -e "$folder/$release.tar" ]; then
  # Like the slim images: without what only people read.
  mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates \
    --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$release" "$folder/new.tar"
  mv "$folder/new.tar" "$folder/$release.tar"
fi
container=$($BUILDAH from scratch)
$BUILDAH add --quiet "$container" "$folder/$release.tar" / >/dev/null
$BUILDAH commit --quiet --rm "$container" "$name" >/dev/null
