# shellcheck shell=bash
# What every script here shares: how a step is announced, logged and failed,
# and which Docker client is the right one. To be sourced, never run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SETUP_LOG_DIR=${SETUP_LOG_DIR:-/var/log/kage}
# A user who cannot write there gets a folder of his own.
if ! mkdir -p "$SETUP_LOG_DIR" 2>/dev/null || [[ ! -w $SETUP_LOG_DIR ]]; then
  SETUP_LOG_DIR=$(mktemp -d -t kage-log.XXXXXX)
fi
# No name of ours in the environment begins with KAGE_ but for those that the
# server knows: it refuses to start with one that it does not.
export SETUP_LOG_DIR

# A client that points elsewhere (another context, a remote DOCKER_HOST, a
# client without an engine earlier on PATH) must not receive our commands.
export DOCKER_HOST=unix:///var/run/docker.sock
unset DOCKER_CONTEXT
# Unsettled terminal settings must not change what the tools print.
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

# docker ARG...  the distribution's client where there is one.
docker() {
  if [[ -x /usr/bin/docker ]]; then
    /usr/bin/docker "$@"
  else
    command docker "$@"
  fi
}

have_docker() { [[ -x /usr/bin/docker ]] || type -P docker >/dev/null; }

is_terminal() { [[ -t 2 && ${TERM:-dumb} != dumb && -z ${CI:-} ]]; }

# shellcheck disable=SC2034 # the scripts that source this use them
if is_terminal; then
  BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' OFF=$'\e[0m'
else
  BOLD='' DIM='' RED='' GREEN='' OFF=''
fi

say() { printf '%s\n' "$@" >&2; }

# note TEXT...  one line below the current step.
note() { printf '      %s%s%s\n' "$DIM" "$*" "$OFF" >&2; }

# die WHAT WHY TODO  ends the script; each part may be empty. Its exit status
# tells a calling script that all has been said.
SAID=70
die() {
  printf '\n%sfailed:%s %s\n' "$RED$BOLD" "$OFF" "${SETUP_STEP:+$SETUP_STEP: }$1" >&2
  [[ -n ${2:-} ]] && printf '   why: %s\n' "$2" >&2
  [[ -n ${3:-} ]] && printf '  what to do: %s\n' "$3" >&2
  exit "$SAID"
}

# For the ERR trap: nothing that fails may do so without a word.
unexpected() {
  local status=$1 line=$2 command=$3
  ((status == SAID)) ||
    die "$command (exit status $status)" "${0##*/}, line $line" "the logs are in $SETUP_LOG_DIR"
}

# logged NAME TODO COMMAND...  runs the command with its output in NAME.log.
# On a terminal a spinner shows that it lives and the log's last line; without
# one, a line every 30 s. On failure: the last lines of the log, then TODO.
logged() {
  local name=$1 todo=$2 log before started pid status=0 beat=0 frames='-\|/' last
  shift 2
  log=$SETUP_LOG_DIR/$name.log
  # Enough of the past to compare with, and no more.
  [[ -e $log && $(stat -c %s "$log") -gt 4000000 ]] && : >"$log"
  printf '\n== %s %s\n' "$(date -u +%FT%TZ)" "$*" >>"$log"
  before=$(stat -c %s "$log")
  started=$SECONDS
  {
    trap - ERR
    "$@"
  } >>"$log" 2>&1 </dev/null &
  pid=$!
  # An interrupted script must not leave its child at work.
  # shellcheck disable=SC2064
  trap "kill $pid 2>/dev/null || true; exit 130" INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    if is_terminal; then
      last=$(tail -n 1 "$log" 2>/dev/null | tr -d '\000-\037' | cut -c1-60)
      printf '\r      %s %4ds  %s%-60s%s' "${frames:beat % 4:1}" \
        $((SECONDS - started)) "$DIM" "$last" "$OFF" >&2
      sleep 0.2
    else
      ((beat > 0 && beat % 150 == 0)) && note "still at it after $((SECONDS - started)) s"
      sleep 0.2
    fi
    beat=$((beat + 1))
  done
  wait "$pid" || status=$?
  trap - INT TERM
  is_terminal && printf '\r\e[K' >&2
  if ((status != 0)); then
    say ""
    tail -c "+$((before + 1))" "$log" | tail -n 20 | sed 's/^/      | /' >&2
    die "$name (exit status $status after $((SECONDS - started)) s)" \
      "the lines above; the whole log is $log" "$todo"
  fi
}

# need_root WHAT
need_root() {
  [[ $(id -u) == 0 ]] || die "$1" "this needs root" "run it again as root (sudo $0 …)"
}

# engine_up: the engine answers.
engine_up() { have_docker && timeout 10 docker info >/dev/null 2>&1; }

image_present() { docker image inspect "$1" >/dev/null 2>&1; }

# read_env  takes what .env sets and the environment does not, as Compose does.
read_env() {
  local name value
  [[ -r $ROOT/.env ]] || return 0
  while IFS='=' read -r name value; do
    [[ $name =~ ^KAGE_[A-Z_]+$ && -z ${!name+set} ]] && export "$name=$value"
  done <"$ROOT/.env"
  return 0
}

# name_project  which installation this is: PROJECT is what compose.yaml calls it.
name_project() {
  if [[ ${KAGE_INSTANCE:-} == default ]]; then
    # Compose cannot tell it from any other name.
    grep -qs '^KAGE_INSTANCE=default' "$ROOT/.env" &&
      die "KAGE_INSTANCE=default in .env" "that is the name without being told, and 'docker compose' would take it for another" \
        "remove the line"
    unset KAGE_INSTANCE
  fi
  # shellcheck disable=SC2034 # the scripts that source this use it
  PROJECT=kage${KAGE_INSTANCE:+-$KAGE_INSTANCE}
  [[ $PROJECT =~ ^[a-z0-9][a-z0-9_-]*$ ]] ||
    die "KAGE_INSTANCE is '$KAGE_INSTANCE'" "Compose takes a-z, 0-9, '_' and '-' in the name of a project" "choose another name"
  [[ -n ${KAGE_INSTANCE:-} ]] || return 0
  export KAGE_INSTANCE
  [[ -n ${KAGE_DATA_DIR:-} && -n ${KAGE_PORT:-} ]] ||
    die "a second installation ('$KAGE_INSTANCE')" "it would share the first one's data or port" \
      "set KAGE_DATA_DIR and KAGE_PORT too, to ones of its own"
  # Its client's key must not replace the first one's.
  export XDG_CONFIG_HOME=$KAGE_DATA_DIR/client
}

# compose ARG...  on our stack, whatever the folder.
compose() { docker compose --project-directory "$ROOT" --file "$ROOT/compose.yaml" "$@"; }
