# docker build -t subsecond .
# docker run --rm -p 127.0.0.1:8000:8000 -v subsecond:/data subsecond smollm2-135m --within 1s
#
# Keys are needed, since the container's address is not the loopback one; the entry point makes them on the first start and prints one.
FROM python:3.12-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ cmake ninja-build && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /wheels .

FROM python:3.12-slim-bookworm
RUN --mount=from=build,source=/wheels,target=/wheels pip install --no-cache-dir /wheels/*.whl \
    && useradd --system --create-home --home-dir /data --uid 10001 subsecond
COPY --chmod=755 ops/container-start /usr/local/bin/container-start
USER subsecond
WORKDIR /data
ENV SUBSECOND_HOME=/data/cache PYTHONDONTWRITEBYTECODE=1
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["container-start"]
CMD ["smollm2-135m", "--within", "1s"]
