# One image; the command picks the process:
#
#     docker build -t drm-ingest .
#     docker run --env-file drm.env -p 8080:8080 drm-ingest edge
#     docker run --env-file drm.env drm-ingest migrate
#
# Settings are environment variables DRM_* (docs/settings.md). It writes nothing, so it runs with a read-only root file system.
#
# Health, by process: edge 8080, serve 8081, enrich 8082, attach 8083, each with /health/live (restart it when this
# fails), /health/ready (send it work only while this is 200) and /metrics. There is no HEALTHCHECK here because the
# port is the process's; compose.yaml shows one. After SIGTERM a process finishes what is in flight within
# DRM_DRAIN_TIMEOUT_S (15): give it some seconds more before killing it.

FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/drm-ingest
WORKDIR /build
COPY requirements-image.txt ./
RUN /opt/drm-ingest/bin/pip install --require-hashes -r requirements-image.txt
COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY migrations migrations
COPY src src
RUN /opt/drm-ingest/bin/pip install --no-deps . \
 && /opt/drm-ingest/bin/python -m compileall -q /opt/drm-ingest/lib \
 && /opt/drm-ingest/bin/pip uninstall --yes --quiet pip

FROM python:3.12-slim
COPY --from=build /opt/drm-ingest /opt/drm-ingest
ENV PATH=/opt/drm-ingest/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DRM_EDGE_HOST=0.0.0.0 \
    DRM_SERVE_HOST=0.0.0.0 \
    DRM_WORKER_HOST=0.0.0.0
EXPOSE 8080 8081 8082 8083
USER 10001:10001
ENTRYPOINT ["drm-ingest"]
CMD ["--help"]
