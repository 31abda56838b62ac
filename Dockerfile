# The server: `make image`, or
#
#   docker build -t unmask . && docker run -p 127.0.0.1:50051:50051 -v unmask:/data \
#     -e UNMASK_INSECURE=true -e UNMASK_AUTH=none unmask
#
# See docs/install.md. BASE is any Debian-like image with Python 3.11 or later and venv.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
# The base's certificates, so that a company's own are trusted; the base's Python and no other.
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never \
    UV_SYSTEM_CERTS=true
WORKDIR /src
COPY tools/locks/build.txt tools/locks/
RUN --mount=type=cache,target=/root/.cache \
    python3 -m venv /opt/build \
 && /opt/build/bin/pip install --quiet --require-hashes -r tools/locks/build.txt \
 && python3 -m venv --without-pip /opt/unmask

# What changes seldom comes first. EXTRAS=transformers adds the embedded engine and torch, for Linux
# with CUDA unless TORCH_OPTIONS says otherwise: "--torch-backend cpu". What is left of the packages
# is compiled for files of any date: a user that may not write cannot do it later. Some
# of torch's files are for newer versions of Python and do not compile.
ARG EXTRAS=""
ARG TORCH_OPTIONS=""
COPY constraints.txt ./
COPY tools/locks tools/locks
RUN --mount=type=cache,target=/root/.cache \
    install="/opt/build/bin/uv pip install --quiet --python /opt/unmask" \
 && case "$EXTRAS" in \
      "") lock=server ;; \
      transformers) lock=transformers; $install $TORCH_OPTIONS -c constraints.txt torch ;; \
      *) echo "EXTRAS: nothing, or transformers" >&2; exit 1 ;; \
    esac \
 && $install --require-hashes --no-deps -r "tools/locks/$lock.txt" \
 && find /opt/unmask/lib -type d -name tests -prune -exec rm -r {} + \
 && (python3 -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/unmask/lib || true)

COPY pyproject.toml README.md LICENSE ./
COPY proto proto
COPY client client
COPY server server
COPY migrations migrations
RUN /opt/build/bin/hatchling build -t wheel -d dist \
 && /opt/build/bin/uv pip install --quiet --no-cache --no-deps --python /opt/unmask dist/*.whl \
 && python3 -m compileall -q --invalidation-mode unchecked-hash \
      /opt/unmask/lib/python*/site-packages/unmask* \
 && rm -f /opt/unmask/.lock

FROM ${BASE}
ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="Unmask" \
      org.opencontainers.image.description="Where does a teacher push a student towards success?" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# /data: the database of SQLite. /models: what may be registered.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin unmask \
 && install -d -o unmask -g unmask /data \
 && install -d /models
COPY --from=build /opt/unmask /opt/unmask
ENV PATH=/opt/unmask/bin:$PATH \
    UNMASK_DATABASE=sqlite:////data/unmask.db \
    UNMASK_LISTEN=0.0.0.0:50051,unix:/tmp/unmask.sock \
    UNMASK_ADDRESS=unix:/tmp/unmask.sock \
    UNMASK_MODEL_ROOTS=/models \
    UNMASK_LOG_FORMAT=json
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 50051
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s CMD ["unmask-server", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["unmask-server"]
CMD ["serve"]
