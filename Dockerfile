# The server with its embedded engine, on the CPU. Build with another torch index for a GPU:
#   docker build --build-arg TORCH="torch==2.13.0" -t unmask .
FROM python:3.11-slim AS build
ARG TORCH="torch==2.13.0"
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY proto proto
COPY client client
COPY server server
COPY migrations migrations
RUN python -m venv /opt/unmask \
 && /opt/unmask/bin/pip install --no-cache-dir -c constraints.txt "$TORCH" '.[transformers]'

FROM python:3.11-slim
COPY --from=build /opt/unmask /opt/unmask
RUN useradd --create-home --uid 10001 unmask && mkdir /data && chown unmask /data
USER unmask
ENV PATH=/opt/unmask/bin:$PATH \
    UNMASK_DATABASE=sqlite:////data/unmask.db \
    UNMASK_LISTEN='["0.0.0.0:50051"]' \
    UNMASK_LOG_FORMAT=json
VOLUME /data
EXPOSE 50051
ENTRYPOINT ["unmask-server"]
CMD ["serve"]
