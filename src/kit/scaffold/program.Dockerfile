# CLI image `@NAME@`: TODO, one native program. Nothing of Kage Bunshin goes in:
# the shim is mounted when a sandbox starts.
ARG BASE_IMAGE=debian:trixie-slim

FROM ${BASE_IMAGE} AS cli
USER root
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl xz-utils \
 && rm -rf /var/lib/apt/lists/*
# The second is there behind a proxy that inspects TLS (KAGE_BUILD_CA); it does
# not reach the image.
COPY SHA256SUMS kage-build-ca.pe[m] /build/
WORKDIR /build
# TODO: the program, for instance from its makers' release, checked against the
# hash in SHA256SUMS (what `sha256sum FILE` prints, a line a file):
#  && curl -fsSL --cacert ca.pem -o cli.tar.gz https://…/v1.2.3/cli-linux-x64.tar.gz \
#  && sha256sum --check --strict SHA256SUMS \
#  && tar -xzf cli.tar.gz -C /opt/@NAME@ \
# or one that lies beside this file: COPY @NAME@ /opt/@NAME@/ before this.
RUN cat /etc/ssl/certs/ca-certificates.crt /build/kage-build-ca.pe[m] > /build/ca.pem 2>/dev/null; \
    mkdir -p /opt/@NAME@ \
 && chmod -R u=rwX,go=rX /opt/@NAME@

