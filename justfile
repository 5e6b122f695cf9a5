# Daily commands. What each of them does is in scripts/ and in ./test.

default:
    @just --list

# Everything that CI runs
test *args:
    ./test {{args}}

# Random faults over a whole world, one seed after the other: docs/faults.md
chaos minutes:
    scripts/chaos {{minutes}}

# Format and lint
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

fmt:
    cargo fmt --all

# A private PostgreSQL for a shell of work: eval "$(just db)"
db:
    @scripts/host postgres
    @echo "export DATABASE_URL='$(scripts/cluster start /tmp/kage-dev-postgres)'"
    @echo 'export KAGE_TEST_DATABASE_URL=$DATABASE_URL'

db-stop:
    scripts/cluster stop /tmp/kage-dev-postgres

# The stack, without a first task
up:
    ./quickstart up

down *args:
    ./quickstart down {{args}}

logs *services:
    /usr/bin/docker compose logs --follow {{services}}

# psql as the database's superuser
psql:
    /usr/bin/docker compose exec db psql --host=/run/postgresql --username=postgres kage
