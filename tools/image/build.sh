#!/usr/bin/env bash
# Build the image with whatever is there: docker, podman or buildah. Arguments go to its `build`,
# e.g. --build-arg EXTRAS=transformers. IMAGE is its name; BUILDER, with options, chooses a tool.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2>/dev/null || true)
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}"

if [ -z "${BUILDER:-}" ]; then
  if docker info >/dev/null 2>&1; then BUILDER=docker
  elif command -v podman >/dev/null; then BUILDER=podman
  elif command -v buildah >/dev/null; then BUILDER=buildah
  else
    echo "no docker that runs, no podman, no buildah: install one of them" >&2
    exit 1
  fi
fi
case "$BUILDER" in
  docker*) options=(--build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH") ;;
  # Their own format has no health checks.
  *) options=(--format docker --timestamp "$SOURCE_DATE_EPOCH") ;;
esac
exec $BUILDER build -t "${IMAGE:-unmask:$version}" "${options[@]}" \
  --build-arg "VERSION=$version" --build-arg "REVISION=$revision" "$@" .
