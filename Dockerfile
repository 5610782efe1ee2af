# One image, both ends: `docker run … api` and `docker run … worker`. See docker-compose.yml.
FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/streamspool
ENV PATH=/opt/streamspool/bin:$PATH
WORKDIR /src
# Dependencies first: this layer is rebuilt only when the lock changes.
COPY requirements.lock ./
RUN pip install --no-deps --only-binary :all: --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY worker worker
COPY api api
# What built it stays behind; pip says if anything else would miss it.
RUN pip install --no-deps --no-build-isolation . && \
    pip uninstall --yes editables hatchling packaging pathspec pluggy tomlkit trove-classifiers && pip check

FROM python:3.13-slim
# A number, not a name: Kubernetes' runAsNonRoot can only judge numbers.
RUN useradd --system --no-create-home --uid 10001 streamspool && install -d -o 10001 -m 700 /data
COPY --from=build /opt/streamspool /opt/streamspool
ENV PATH=/opt/streamspool/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001
EXPOSE 8000
# Both ends drain on SIGTERM: running answers are finished or handed over, then the process exits.
STOPSIGNAL SIGTERM
ENTRYPOINT ["streamspool"]
CMD ["--help"]
