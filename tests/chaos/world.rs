//! A world of which everything can be broken: an engine, a Postgres and a network to it of its own, disks that can be
//! full, and each role as a process that a supervisor starts again, as a service manager does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use rustix::process::Signal;
use sqlx::{AssertSqlSafe, PgPool};

use crate::cluster::Cluster;
use crate::faketime;
use crate::own_engine::{Engine, mount_file};
use crate::past;
use crate::plan::{Role, Setup};
use crate::proxy::Proxy;
use crate::support::provider::Provider;
use crate::support::receiver::Receiver;
use crate::support::{TestKage, eventually, leftovers};
use crate::work::OUTPUT_LIMIT;

/// Seconds.
pub const LEASE: u64 = 5;
/// MiB of the data folder's disk, and of the engine's.
const DATA_DISK: u64 = 1_500;
const ENGINE_DISK: u64 = 1_500;

/// One role, as its supervisor sees it.
#[derive(Debug, Default)]
pub struct Slot {
    process: Option<usize>,
    /// Faults that keep it down.
    held: usize,
    /// Its end was asked for.
    is_struck: bool,
    /// Seconds by which its clock is off.
    skew: i64,
}

pub struct World {
    pub kage: TestKage,
    pub pool: PgPool,
    pub proxy: Proxy,
    pub engine: Engine,
    pub cluster: Cluster,
    pub provider: Provider,
    pub engine_options: Vec<&'static str>,
    /// The log's public key.
    pub audit_key: String,
    slots: BTreeMap<Role, Slot>,
    /// By role and reason: how often the supervisor found it ended without having been struck.
    pub deaths: BTreeMap<String, usize>,
    /// How each of those ended that is not as docs/upgrade.md says.
    pub last_words: Vec<String>,
    _receiver: Receiver,
}

impl World {
    pub async fn new(setup: Setup) -> Self {
        let mut engine_options = vec!["--shutdown-timeout=5"];
        if setup.live_restore {
            engine_options.push("--live-restore");
        }
        let engine = Engine::small(ENGINE_DISK, &engine_options);
        let cluster = Cluster::start();
        let (proxy, url) = Proxy::before_postgres(&cluster.url());
        let mut kage = TestKage::bare().await;
        mount_file(&kage.folder.join("disk"), DATA_DISK, &kage.data);
        let mode = Command::new("chmod").arg("711").arg(&kage.data).status();
        assert!(mode.is_ok_and(|status| status.success()));
        let (provider, receiver) = (Provider::start().await, Receiver::start([]).await);
        let audit_key = settings(&mut kage, &url, &engine, &receiver);
        kage.host(&["migrate"]);
        let pool = PgPool::connect_lazy(&cluster.url()).expect("a URL");
        sqlx::raw_sql(AssertSqlSafe(WITNESS)).execute(&pool).await.expect("a witness");
        kage.equip();
        provider.of(&mut kage);
        let mut roles =
            vec![Role::Api, Role::Runner, Role::Gateway, Role::Sequencer, Role::Notifier, Role::Retention];
        if setup.second {
            roles.push(Role::Second);
        }
        let slots = roles.into_iter().map(|role| (role, Slot::default())).collect();
        let mut this = Self {
            kage,
            pool,
            proxy,
            engine,
            cluster,
            provider,
            engine_options,
            audit_key,
            slots,
            deaths: BTreeMap::new(),
            last_words: Vec::new(),
            _receiver: receiver,
        };
        this.supervise();
        let api = this.process(Role::Api).expect("started");
        this.kage.ready(api).await;
        this.kage.demo().await;
        this.deaths.clear();
        this
    }

    pub fn roles(&self) -> Vec<Role> {
        self.slots.keys().copied().collect()
    }

    fn slot(&mut self, role: Role) -> &mut Slot {
        self.slots.get_mut(&role).expect("the plan is of this world")
    }

    /// Its process, if it lives.
    pub fn process(&mut self, role: Role) -> Option<usize> {
        let index = self.slot(role).process?;
        self.kage.process(index).ended().is_none().then_some(index)
    }

    /// Starts whoever is down and is not held down.
    pub fn supervise(&mut self) {
        for role in self.roles() {
            if self.slot(role).held > 0 || self.process(role).is_some() {
                continue;
            }
            let ended = self.slot(role).process.take();
            let is_struck = std::mem::take(&mut self.slot(role).is_struck);
            if let Some(index) = ended.filter(|_| !is_struck) {
                let process = self.kage.process(index);
                let (status, tail) = (process.ended(), process.log_tail());
                let reason = by_design(role, status, &tail);
                if reason.is_none() {
                    let tail: Vec<&str> = tail.lines().collect();
                    let last = tail[tail.len().saturating_sub(3)..].join("\n      ");
                    self.last_words.push(format!("{role:?} ended by itself, {status:?}:\n      {last}"));
                }
                let reason = format!("{}: {}", role.program(), reason.unwrap_or("by no design"));
                *self.deaths.entry(reason).or_default() += 1;
            }
            self.start(role);
        }
    }

    fn start(&mut self, role: Role) {
        let mut own: Vec<(&str, String)> = Vec::new();
        let login = match role {
            Role::Runner => Some("runner_first"),
            Role::Second => Some("runner_second"),
            _ => None,
        };
        if let Some(login) = login {
            let url = self.kage.settings["KAGE_DATABASE_URL"]
                .replace("postgres://postgres@", &format!("postgres://{login}@"));
            own.push(("KAGE_DATABASE_URL", url));
        }
        if role == Role::Second {
            own.push(("KAGE_DATA_DIR", self.second().display().to_string()));
        }
        let skew = self.slot(role).skew;
        if skew != 0 {
            own.extend(faketime::settings(skew));
        }
        let own: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let index = self.kage.spawn_with(role.program(), &own);
        self.slot(role).process = Some(index);
    }

    /// The second runner's data folder.
    pub fn second(&self) -> PathBuf {
        self.kage.folder.join("elsewhere")
    }

    /// Ends it with a signal, and keeps it down. Whether there was anybody to strike.
    pub fn strike(&mut self, role: Role, signal: Signal) -> bool {
        self.slot(role).held += 1;
        let Some(index) = self.process(role) else { return false };
        if signal == Signal::KILL {
            self.kage.process(index).kill_9();
            self.slot(role).process = None;
        } else {
            self.kage.process(index).signal(signal);
            self.slot(role).is_struck = true;
        }
        true
    }

    pub fn let_up(&mut self, role: Role) {
        self.slot(role).held -= 1;
    }

    pub fn skew(&mut self, role: Role, seconds: i64) {
        self.slot(role).skew = seconds;
    }

    /// A signal that does not end it.
    pub fn signal(&mut self, role: Role, signal: Signal) -> bool {
        let Some(index) = self.process(role) else { return false };
        self.kage.process(index).signal(signal);
        true
    }

    /// Until everybody works.
    pub async fn calm(&mut self) {
        tokio::task::block_in_place(|| self.engine.answers());
        eventually("all roles live", async || {
            self.supervise();
            let alive = self.roles().into_iter().all(|role| self.process(role).is_some());
            let answer = self.kage.request(reqwest::Method::GET, "/ready").send().await;
            (alive && answer.is_ok_and(|answer| answer.status().is_success())).then_some(())
        })
        .await;
    }

    /// Ends all roles in order; what was wrong with their ends.
    pub fn end(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        for role in self.roles() {
            if let Some(index) = self.process(role) {
                let process = self.kage.process(index);
                process.signal(Signal::CONT);
                wrong.extend(process.end(false));
            }
        }
        wrong
    }

    /// All that the roles have logged, for whoever looks into what went wrong.
    pub fn keep_logs(&self, into: &std::path::Path) {
        let _ = std::fs::create_dir_all(into);
        for entry in std::fs::read_dir(&self.kage.folder).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let _ = std::fs::copy(entry.path(), into.join(entry.file_name()));
            }
        }
        let _ = std::fs::copy(self.engine.path("log"), into.join("dockerd.log"));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for complaint in self.end() {
            eprintln!("{complaint}");
        }
        for data in [self.kage.data.clone(), self.second()] {
            if let Some(keeper) = leftovers::keeper(&data) {
                let _ = rustix::process::kill_process(keeper, Signal::KILL);
            }
        }
        for id in self.engine.containers() {
            let _ = self.engine.docker().args(["rm", "--force", &id]).output();
        }
        for mount in leftovers::mounts(&self.kage.folder) {
            let _ = Command::new("umount").arg(mount).status();
        }
    }
}

/// Why a role may end by itself: it has the status 1 then, and says why in its last line.
fn by_design(role: Role, status: Option<ExitStatus>, log: &str) -> Option<&'static str> {
    let last = log.lines().last().filter(|last| last.starts_with("kage: "))?;
    if status?.code() != Some(1) || !matches!(role, Role::Runner | Role::Second) {
        return None;
    }
    if last.contains("no Docker Engine answers at") {
        return Some("no engine at its start");
    }
    last.contains("No space left on device").then_some("no room at its start")
}

/// Settings of all roles; the audit log's public key.
fn settings(kage: &mut TestKage, url: &str, engine: &Engine, receiver: &Receiver) -> String {
    let key = kage.folder.join("audit-key").display().to_string();
    let hooks = kage.folder.join("webhooks.toml");
    let hook =
        format!("[[hook]]\nname = \"all\"\nurl = \"{}\"\nsecrets = [\"env:HOOK_SECRET\"]\n", receiver.url());
    std::fs::write(&hooks, hook).expect("writes");
    let lease = LEASE.to_string();
    let output = OUTPUT_LIMIT.to_string();
    for (name, value) in [
        ("KAGE_DATABASE_URL", url),
        ("KAGE_RUNNER_DOCKER", &engine.url()),
        ("KAGE_RUNNER_LEASE_SECS", &lease),
        ("KAGE_RUNNER_DRAIN_SECS", "5"),
        ("KAGE_RUNNER_RESERVE_BYTES", "67108864"),
        ("KAGE_LIMIT_OUTPUT_BYTES", &output),
        ("KAGE_LIMIT_WORKTREE_BYTES", "134217728"),
        ("KAGE_LIMIT_WORKTREE_INODES", "20000"),
        ("KAGE_API_RATE_ADDRESS", "100000"),
        ("KAGE_WEBHOOKS_FILE", &hooks.display().to_string()),
        ("HOOK_SECRET", "whsec_YW5vdGhlci1zZWNyZXQtb2Yta2FnZS10ZXN0cy0wMg=="),
        ("KAGE_SEQUENCER_KEY_FILE", &key),
        ("KAGE_SEQUENCER_POLL_MILLIS", "200"),
        // Only what was put into months long past is as old as that: past.rs.
        ("KAGE_RETENTION_LOG_DAYS", past::AGE_DAYS),
        ("KAGE_RETENTION_EVENTS_DAYS", past::AGE_DAYS),
        ("KAGE_RETENTION_RESULTS_DAYS", past::AGE_DAYS),
        ("KAGE_RETENTION_POLL_SECS", "1"),
    ] {
        kage.set(name, value);
    }
    kage.host(&["audit", "keygen", "--name", "kage.test/chaos", "--out", &key]).trim().to_owned()
}

/// Sees in the database itself what the fence is to keep from happening. The runners log in under names of their own;
/// whoever writes for a run that another one holds, or takes a lease that has not run out, is written down.
const WITNESS: &str = "
CREATE ROLE runner_first SUPERUSER LOGIN;
CREATE ROLE runner_second SUPERUSER LOGIN;
CREATE TABLE chaos_runners (id uuid PRIMARY KEY, who text NOT NULL);
CREATE TABLE chaos_fence (at timestamptz NOT NULL DEFAULT clock_timestamp(), who text NOT NULL, run uuid NOT NULL, what text NOT NULL);
CREATE FUNCTION chaos_runner() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_runners VALUES (NEW.id, session_user) ON CONFLICT DO NOTHING;
    RETURN NEW;
END $$;
CREATE TRIGGER chaos_runner AFTER INSERT OR UPDATE ON runners FOR EACH ROW EXECUTE FUNCTION chaos_runner();
CREATE FUNCTION chaos_event() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_fence (who, run, what)
    SELECT session_user, r.id, 'event ' || NEW.kind || ' of a run of ' || h.who
    FROM runs r JOIN chaos_runners h ON h.id = r.runner_id
    WHERE r.id = NEW.run_id AND session_user LIKE 'runner\\_%' AND h.who <> session_user;
    RETURN NEW;
END $$;
CREATE TRIGGER chaos_event AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION chaos_event();
CREATE FUNCTION chaos_run() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_fence (who, run, what)
    SELECT session_user, OLD.id, 'write of ' || NEW.state || ' while ' || h.who || ' holds it'
    FROM chaos_runners h
    WHERE h.id = OLD.runner_id AND OLD.lease_id IS NOT NULL AND OLD.lease_expires_at > clock_timestamp()
      AND session_user LIKE 'runner\\_%' AND h.who <> session_user;
    RETURN NEW;
END $$;
CREATE TRIGGER chaos_run AFTER UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION chaos_run();
";
