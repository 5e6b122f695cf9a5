FROM ${BASE_IMAGE}
USER root
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      bash ca-certificates file git jq make patch procps python3 ripgrep unzip xz-utils \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
# A shell's start-up files would change what the CLI's own shells do (Debian's
# /etc/profile sets PATH anew). No program keeps a bit that changes who runs it.
 && rm -rf /etc/profile /etc/profile.d /etc/bash.bashrc /etc/skel /root/.bashrc /root/.profile \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
 && ! find / -xdev -type f -perm /6000 | grep . \
# The sandbox picks the user; this one has a name. HOME is a tmpfs there.
 && { getent group 10001 >/dev/null || groupadd --gid 10001 agent; } \
 && { getent passwd 10001 >/dev/null \
      || useradd --uid 10001 --gid 10001 --no-create-home --home-dir /home/agent --shell /bin/bash agent; } \
 && mkdir -p -m 0755 /home/agent
COPY --from=cli /opt/@NAME@ /opt/@NAME@

USER 10001:10001
CMD ["/bin/bash"]
