FROM python:3.12-slim

WORKDIR /app
COPY pyproject.toml constraints.txt README.md dagster.yaml ./
COPY uniq_pipeline uniq_pipeline
COPY assets assets
COPY sql sql

# Compiled at build time: every tick is a new process, and /app is not writable for it.
RUN PIP_CONSTRAINT=constraints.txt pip install --no-cache-dir '.[postgres]' \
 && python -m compileall -q /usr/local/lib \
 && useradd --create-home --uid 10001 uniq \
 && mkdir -p /data/dagster && cp dagster.yaml /data/dagster/ && chown -R uniq:uniq /data

USER uniq
ENV DAGSTER_HOME=/data/dagster UNIQ_DATA_DIR=/data
VOLUME /data
CMD ["uniq-pipeline", "--help"]
