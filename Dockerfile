# The server with its embedded engine.
#
#   docker build -t unmask . && docker run -p 50051:50051 -v unmask:/data unmask
#
# PyPI's torch for Linux brings CUDA. For a smaller image without it, let pip find a CPU build, e.g.
# through --build-arg PIP_OPTIONS with an index that has one.
FROM python:3.11-slim AS build
ARG TORCH="torch==2.13.0"
ARG PIP_OPTIONS=""
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY proto proto
COPY client client
COPY server server
COPY migrations migrations
RUN python -m venv /opt/unmask \
 && /opt/unmask/bin/pip install --no-cache-dir $PIP_OPTIONS -c constraints.txt "$TORCH" '.[transformers,sglang]'

FROM python:3.11-slim
COPY --from=build /opt/unmask /opt/unmask
RUN useradd --create-home --uid 10001 unmask && mkdir /data && chown unmask /data
USER unmask
ENV PATH=/opt/unmask/bin:$PATH \
    UNMASK_DATABASE=sqlite:////data/unmask.db \
    UNMASK_LISTEN=0.0.0.0:50051 \
    UNMASK_LOG_FORMAT=json
VOLUME /data
EXPOSE 50051
ENTRYPOINT ["unmask-server"]
CMD ["serve"]
