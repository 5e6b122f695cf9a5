//! Who may do what, as the roles themselves (probe 73).

use sqlx::AssertSqlSafe;

use crate::database::as_role;
use crate::support::Trail;

const TABLES: [&str; 5] =
    ["audit_entries", "audit_leaves", "audit_nodes", "audit_checkpoints", "audit_cosignatures"];

#[tokio::test]
async fn nobody_changes_what_is_there() {
    let trail = Trail::grown(300, 100).await;
    for role in [None, Some("kage_api"), Some("kage_runner"), Some("kage_gateway"), Some("kage_sequencer")] {
        for table in TABLES {
            let column = if table == "audit_entries" {
                "details"
            } else if table == "audit_cosignatures" {
                "line"
            } else {
                "index"
            };
            let column = if table == "audit_checkpoints" { "note" } else { column };
            for statement in [
                format!("UPDATE {table} SET {column} = {column}"),
                format!("DELETE FROM {table}"),
                format!("TRUNCATE {table} CASCADE"),
            ] {
                assert_eq!(
                    as_role(trail.pool(), role, &statement).await.as_deref(),
                    Some("42501"),
                    "{role:?}: {statement}"
                );
            }
        }
        for statement in ["UPDATE audit_queue SET entry_id = entry_id", "TRUNCATE audit_queue"] {
            assert_eq!(
                as_role(trail.pool(), role, statement).await.as_deref(),
                Some("42501"),
                "{role:?}: {statement}"
            );
        }
    }
}

const ENTRY: &str = "INSERT INTO audit_entries (actor_kind, action, object, outcome, details) VALUES";

#[tokio::test]
async fn each_role_adds_what_is_its_own_and_nothing_else() {
    let trail = Trail::grown(5, 100).await;
    for (role, kind) in [
        ("kage_api", "key"),
        ("kage_runner", "runner"),
        ("kage_gateway", "gateway"),
        ("kage_sequencer", "sequencer"),
    ] {
        // An entry in its own name comes into the queue, on which writers have no right.
        let own = format!("{ENTRY} ('{kind}', 'x', 'x', 'done', '{{}}')");
        assert_eq!(as_role(trail.pool(), Some(role), &own).await, None, "{role}");
        for other in ["host", "key", "runner", "gateway", "sequencer"].iter().filter(|other| **other != kind)
        {
            let statement = format!("{ENTRY} ('{other}', 'x', 'x', 'done', '{{}}')");
            assert_eq!(
                as_role(trail.pool(), Some(role), &statement).await.as_deref(),
                Some("42501"),
                "{role} as {other}"
            );
        }
        if role != "kage_sequencer" {
            for statement in [
                "INSERT INTO audit_queue (entry_id) VALUES (gen_random_uuid())",
                "DELETE FROM audit_queue",
                "SELECT * FROM audit_queue",
                "INSERT INTO audit_leaves SELECT index + 5, gen_random_uuid(), hash FROM audit_leaves",
                "INSERT INTO audit_nodes VALUES (1, 1, sha256('x'))",
                "INSERT INTO audit_checkpoints VALUES (100, sha256('x'), 'x')",
                "INSERT INTO audit_cosignatures VALUES (5, 'x', 'x', now())",
                "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
                "DROP TRIGGER audit_entries_enqueue ON audit_entries",
            ] {
                assert_eq!(
                    as_role(trail.pool(), Some(role), statement).await.as_deref(),
                    Some("42501"),
                    "{role}: {statement}"
                );
            }
        }
        // Of starts and stops each tells its own.
        for object in ["role:api", "role:runner", "role:gateway", "role:sequencer", "role:postgres", "x"] {
            let own = role.strip_prefix("kage_") == object.strip_prefix("role:");
            for action in ["role.start", "role.stop"] {
                let statement = format!("{ENTRY} ('host', '{action}', '{object}', 'done', '{{}}')");
                let refused = as_role(trail.pool(), Some(role), &statement).await;
                assert_eq!(refused.as_deref(), (!own).then_some("42501"), "{role}: {action} of {object}");
            }
        }
        let certificate = format!("{ENTRY} ('host', 'certificate.reload', 'x', 'done', '{{}}')");
        assert_eq!(
            as_role(trail.pool(), Some(role), &certificate).await.is_none(),
            role == "kage_api",
            "{role}"
        );
        let read = as_role(trail.pool(), Some(role), "SELECT * FROM audit_entries").await;
        let may = matches!(role, "kage_api" | "kage_sequencer");
        assert_eq!(read.is_none(), may, "{role}: {read:?}");
    }
    for statement in [
        "SELECT * FROM tasks",
        "SELECT * FROM api_keys",
        "SELECT * FROM events",
        "INSERT INTO audit_queue (entry_id) VALUES (gen_random_uuid())",
        "INSERT INTO audit_cosignatures VALUES (5, 'x', 'x', now())",
        "CREATE TABLE loot (x text)",
        "DROP TABLE audit_queue",
        "SET session_replication_role = replica",
    ] {
        let refused = as_role(trail.pool(), Some("kage_sequencer"), statement).await;
        assert_eq!(refused.as_deref(), Some("42501"), "{statement}");
    }
    // What the queue gives up is all that it may remove.
    assert_eq!(as_role(trail.pool(), Some("kage_sequencer"), "DELETE FROM audit_queue").await, None);
}

/// Takes the first wall away: roles may make no such tables.
async fn let_make_temporary_tables(trail: &Trail) {
    let grant =
        "DO $$ BEGIN EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO PUBLIC', current_database()); END $$";
    sqlx::raw_sql(grant).execute(trail.pool()).await.expect("the owner may");
}

#[tokio::test]
async fn a_writer_cannot_leave_its_entry_out() {
    let trail = Trail::new().await;
    let_make_temporary_tables(&trail).await;
    let mut transaction = trail.pool().begin().await.expect("begins");
    sqlx::query("SET LOCAL ROLE kage_runner").execute(&mut *transaction).await.expect("set");
    // A table of its own with the queue's name, before ours on the path.
    let _ = sqlx::query("SET LOCAL search_path = pg_temp, public").execute(&mut *transaction).await;
    sqlx::query("CREATE TEMP TABLE audit_queue (entry_id uuid)")
        .execute(&mut *transaction)
        .await
        .expect("its own");
    let entry = AssertSqlSafe(format!("{ENTRY} ('runner', 'x', 'x', 'done', '{{}}')"));
    sqlx::query(entry).execute(&mut *transaction).await.expect("writes");
    transaction.commit().await.expect("commits");
    let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM public.audit_queue")
        .fetch_one(trail.pool())
        .await
        .expect("reads");
    assert_eq!(waiting, 1);
}

/// A temporary table hides a catalog's, where a function looks there first.
#[tokio::test]
async fn no_role_answers_for_the_catalog() {
    let trail = Trail::grown(5, 100).await;
    let roles = ["kage_api", "kage_runner", "kage_gateway", "kage_sequencer", "kage_notifier"];
    let shadow = "CREATE TEMP TABLE pg_class AS SELECT c.oid, r.oid AS relowner
                  FROM pg_catalog.pg_class c, pg_catalog.pg_roles r WHERE r.rolname = current_user";
    for role in roles {
        assert_eq!(as_role(trail.pool(), Some(role), shadow).await.as_deref(), Some("42501"), "{role}");
    }
    // The second wall without the first.
    let_make_temporary_tables(&trail).await;
    for role in roles {
        for foreign in [
            format!("{ENTRY} ('key', 'x', 'x', 'done', '{{}}')"),
            format!("{ENTRY} ('host', 'role.start', 'role:api', 'done', '{{}}')"),
            format!("{ENTRY} ('sequencer', 'x', 'x', 'done', '{{}}')"),
            "INSERT INTO security_events (id, kind, severity, subject, details) VALUES (gen_random_uuid(), 'sandbox.flood', 3, 'x', '{}')"
                .to_owned(),
        ] {
            let own = (role == "kage_api" && (foreign.contains("'key'") || foreign.contains("role:api")))
                || (role == "kage_sequencer" && foreign.contains("'sequencer'"))
                || (role == "kage_runner" && foreign.contains("flood"));
            let mut transaction = trail.pool().begin().await.expect("a connection");
            let set = AssertSqlSafe(format!("SET LOCAL ROLE {role}"));
            sqlx::query(set).execute(&mut *transaction).await.expect("the role is there");
            sqlx::raw_sql(shadow).execute(&mut *transaction).await.expect("the wall is away");
            let done = sqlx::query(AssertSqlSafe(foreign.clone())).execute(&mut *transaction).await;
            transaction.rollback().await.expect("rolls back");
            assert_eq!(done.is_ok(), own, "{role}: {foreign}: {done:?}");
        }
    }
}

/// What one entry can make the sequencer hold is bounded by the table, whoever writes it.
#[tokio::test]
async fn no_entry_is_larger_than_a_step_can_hold() {
    let trail = Trail::grown(5, 100).await;
    for (role, entry) in [
        ("kage_api", "('key', 'x', 'x', 'done', jsonb_build_object('a', repeat('x', 5000000)))"),
        (
            "kage_notifier",
            "('host', 'secret.reload', 'x', 'done', jsonb_build_object('a', repeat(E'\\x01', 1000000)))",
        ),
        ("kage_api", "('key', 'x', repeat('x', 3000), 'done', '{}')"),
    ] {
        let refused = as_role(trail.pool(), Some(role), &format!("{ENTRY} {entry}")).await;
        assert_eq!(refused.as_deref(), Some("23514"), "{role}: {entry}");
    }
    // Many that are allowed come in more steps than one, and none is lost.
    sqlx::raw_sql(
        "INSERT INTO audit_entries (actor_kind, action, object, outcome, details)
         SELECT 'host', 'x', 'x', 'done', jsonb_build_object('a', repeat(E'\\x01', 600000)) FROM generate_series(1, 20)",
    )
    .execute(trail.pool())
    .await
    .expect("the owner may");
    let mut connection = trail.pool().acquire().await.expect("a connection");
    let mut steps = Vec::new();
    while steps.iter().sum::<usize>() < 20 {
        let taken = kage::db::trail::take(&mut connection, 10_000).await.expect("takes");
        assert!((1..20).contains(&taken.len()), "after {steps:?}: {}", taken.len());
        steps.push(taken.len());
    }
}
