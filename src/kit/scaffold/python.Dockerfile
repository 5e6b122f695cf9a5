# CLI image `@NAME@`: TODO, in a virtual environment of its own. Nothing of Kage
# Bunshin goes in: the shim is mounted when a sandbox starts.
# Debian 13 has Python 3.13. For one that wants an older: debian:bookworm-slim
# (3.11), as images/aider.
ARG BASE_IMAGE=debian:trixie-slim

FROM ${BASE_IMAGE} AS cli
USER root
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 python3-pip python3-venv \
 && rm -rf /var/lib/apt/lists/*
# TODO: pin the CLI and all that it needs, with hashes (docs/adding-a-cli.md).
# The second is there behind a proxy that inspects TLS (KAGE_BUILD_CA); it does
# not reach the image.
COPY requirements.txt kage-build-ca.pe[m] /build/
ARG PIP_INDEX_URL
RUN cat /etc/ssl/certs/ca-certificates.crt /build/kage-build-ca.pe[m] > /build/ca.pem 2>/dev/null; \
    python3 -m venv --without-pip /opt/@NAME@ \
 && PIP_CERT=/build/ca.pem python3 -m pip --python /opt/@NAME@/bin/python install --no-cache-dir --no-deps \
      --require-hashes --only-binary :all: --disable-pip-version-check --root-user-action ignore \
      -r /build/requirements.txt

