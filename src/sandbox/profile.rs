//! The whole lock-down on one page: a pure function from a specification to what the engine is asked for.
//!
//! Every field that could weaken a sandbox is set here, also where the engine's default would do today: defaults
//! change. The engine adds PATH and HOSTNAME, and merges the image's ENV into the environment of PID 1. None of
//! it reaches the CLI, which gets its whole environment from the job; none of ours is ever in it.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};
use kage_shim::containment::MASKED;
use serde_json::{Value, json};

use crate::domain::limits::{Enforcement, Limits};
use crate::sandbox::seccomp::SeccompProfile;
use crate::sandbox::seccomp::table::Told;
use crate::sandbox::spec::Spec;

/// Where the sandbox sees its worktree.
pub const WORKSPACE: &str = "/workspace";
/// HOME of the CLI: a tmpfs.
pub const HOME: &str = "/home/agent";
/// Where the sandbox sees the run's own folder, read-only.
pub const IO_DIR: &str = "/run/kage";
/// Where a sandbox that asks a model sees the folder in which the gateway listens, read-only.
pub const MODEL_DIR: &str = "/run/model";
pub const MODEL_SOCKET: &str = "/run/model/model.sock";
/// Where the sandbox sees the shim, PID 1.
pub const SHIM: &str = "/run/kage-shim";
/// Name resolution inside, from the run's folder: `localhost` and nothing else. An image's own files would show the
/// resolver of the machine that built it.
pub const HOSTS_FILE: &str = "hosts";
pub const RESOLVER_FILE: &str = "resolv.conf";

pub const LABEL_INSTANCE: &str = "kage.instance";
/// What checks of CLI images have there, with a number of their own behind it.
pub const KIT_INSTANCE: &str = "kage-kit";
pub const LABEL_RUN: &str = "kage.run";
pub const LABEL_ATTEMPT: &str = "kage.attempt";

const READ_ONLY: &str = "/proc/sys";

/// What the engine is asked to create. `spec` has been checked ([`Spec::check`]).
pub fn container_body(spec: &Spec, seccomp: &SeccompProfile) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(spec.image.to_string()),
        entrypoint: Some(vec![SHIM.to_owned()]),
        cmd: Some(Vec::new()),
        env: Some(Vec::new()),
        working_dir: Some("/".to_owned()),
        user: Some(format!("{}:{}", spec.user.uid, spec.user.gid)),
        hostname: Some("sandbox".to_owned()),
        domainname: Some(String::new()),
        // Its own network namespace with a silent loopback, as mode `none` gives it, but without a helper of the
        // engine's that costs a third of the start. `network_mode` below is for engines that do not know this field.
        network_disabled: Some(true),
        attach_stdin: Some(false),
        attach_stdout: Some(false),
        attach_stderr: Some(false),
        open_stdin: Some(false),
        stdin_once: Some(false),
        tty: Some(false),
        // An image's health check would run beside the shim.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        stop_signal: Some("SIGTERM".to_owned()),
        labels: Some(labels(spec)),
        host_config: Some(host_config(spec, seccomp)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(spec: &Spec, seccomp: &SeccompProfile) -> HostConfig {
    let limits = &spec.limits;
    HostConfig {
        network_mode: Some("none".to_owned()),
        readonly_rootfs: Some(true),
        cap_add: Some(Vec::new()),
        cap_drop: Some(vec!["ALL".to_owned()]),
        privileged: Some(false),
        security_opt: Some(vec!["no-new-privileges:true".to_owned(), format!("seccomp={}", seccomp.json())]),
        group_add: Some(Vec::new()),
        // `none`: no /dev/shm, one writable place less. Shells, Node and Python need none; a CLI that does
        // (Python's semaphores, Chromium) names it in its manifest and gets a tmpfs with our limits.
        ipc_mode: Some("none".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        pid_mode: Some(String::new()),
        uts_mode: Some(String::new()),
        devices: Some(Vec::new()),
        device_cgroup_rules: Some(Vec::new()),
        device_requests: Some(Vec::new()),
        masked_paths: Some(MASKED.iter().map(|&path| path.to_owned()).collect()),
        readonly_paths: Some(vec![READ_ONLY.to_owned()]),
        memory: Some(signed(limits.memory_bytes)),
        // The same number for both: no swap.
        memory_swap: Some(signed(limits.memory_bytes)),
        oom_kill_disable: Some(false),
        // Above the roles of Kage Bunshin and most of the host: a sandbox is what the host gives up first.
        oom_score_adj: Some(500),
        nano_cpus: Some(signed(limits.cpu_millis.saturating_mul(1_000_000))),
        pids_limit: Some(i64::from(limits.pids)),
        ulimits: Some(ulimits(limits)),
        tmpfs: Some(tmpfs(spec)),
        mounts: Some(mounts(spec)),
        dns: Some(vec!["127.0.0.1".to_owned()]),
        dns_search: Some(vec![".".to_owned()]),
        dns_options: Some(Vec::new()),
        extra_hosts: Some(Vec::new()),
        log_config: Some(log_config(spec)),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        auto_remove: Some(false),
        publish_all_ports: Some(false),
        init: Some(false),
        runtime: spec.runtime.clone(),
        ..HostConfig::default()
    }
}

fn labels(spec: &Spec) -> HashMap<String, String> {
    HashMap::from([
        (LABEL_INSTANCE.to_owned(), spec.instance.clone()),
        (LABEL_RUN.to_owned(), spec.run_id.to_string()),
        (LABEL_ATTEMPT.to_owned(), spec.attempt.to_string()),
    ])
}

/// Files in one tmpfs.
pub(crate) fn tmpfs_inodes(limits: &Limits) -> u64 {
    (limits.tmp_bytes / 4096).clamp(64, 262_144)
}

/// `exec` because build tools run what they have just built in `/tmp`. An inode costs the kernel about a
/// kilobyte that counts towards no size, hence its own limit.
fn tmpfs(spec: &Spec) -> HashMap<String, String> {
    let size = spec.limits.tmp_bytes;
    let inodes = tmpfs_inodes(&spec.limits);
    let options = |mode: &str| {
        let (uid, gid) = (spec.user.uid, spec.user.gid);
        format!("rw,exec,nosuid,nodev,size={size},nr_inodes={inodes},mode={mode},uid={uid},gid={gid}")
    };
    let fixed = [("/tmp".to_owned(), options("1777")), (HOME.to_owned(), options("0700"))];
    let asked = spec.writable.iter().map(|path| (path.clone(), options("0700")));
    asked.chain(fixed).collect()
}

/// Writable places with a limited room of their own, as the sandbox sees them.
pub fn places(spec: &Spec) -> Vec<String> {
    let worktree = (spec.worktree_held == Enforcement::Hard).then(|| WORKSPACE.to_owned());
    let fixed = ["/tmp", HOME].map(str::to_owned);
    worktree.into_iter().chain(fixed).chain(spec.writable.iter().cloned()).collect()
}

fn log_config(spec: &Spec) -> HostConfigLogConfig {
    match spec.log_copy_bytes {
        None => HostConfigLogConfig { typ: Some("none".to_owned()), config: None },
        Some(bytes) => {
            let options = [
                ("max-size", bytes.max(4096).to_string()),
                ("max-file", "1".to_owned()),
                ("compress", "false".to_owned()),
            ];
            HostConfigLogConfig {
                typ: Some("local".to_owned()),
                config: Some(options.map(|(key, value)| (key.to_owned(), value)).into()),
            }
        }
    }
}

fn mounts(spec: &Spec) -> Vec<Mount> {
    let mut mounts = vec![
        bind(&spec.workspace, WORKSPACE, false),
        bind(&spec.io_dir, IO_DIR, true),
        bind(&spec.io_dir.join(HOSTS_FILE), "/etc/hosts", true),
        bind(&spec.io_dir.join(RESOLVER_FILE), "/etc/resolv.conf", true),
        bind(&spec.shim, SHIM, true),
    ];
    mounts.extend(spec.model_dir.as_ref().map(|model| bind(model, MODEL_DIR, true)));
    mounts
}

/// Private propagation: a mount made on the host later does not appear inside. (A warm slot will want
/// `rslave` for its workspace, and for nothing else.)
fn bind(source: &std::path::Path, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    }
}

/// Not `nproc`: the kernel counts it per user over all sandboxes of the host.
fn ulimits(limits: &Limits) -> Vec<ResourcesUlimits> {
    vec![
        ulimit("core", 0),
        ulimit("nofile", i64::from(limits.open_files)),
        ulimit("fsize", signed(limits.file_bytes)),
        ulimit("memlock", 64 * 1024),
        ulimit("msgqueue", 0),
    ]
}

fn ulimit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(value), hard: Some(value) }
}

/// [`Spec::check`] keeps every limit far below `i64::MAX`.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What is different from the host's own kernel with its filters, for whoever reads the record.
fn notes(runtime: Option<&str>) -> &'static [&'static str] {
    match runtime {
        Some("runsc") => &[
            "gVisor's own kernel serves the system calls; it does not apply our seccomp profile, and refused calls are \
             not recorded",
            "memory and processes are limited together with gVisor's own; a run that is refused processes or memory \
             inside gVisor may end as failed",
        ],
        Some(name) if name.starts_with("kata") => {
            &["a kernel of its own in a virtual machine; refused calls are not recorded"]
        }
        _ => &[],
    }
}

/// What the audit trail keeps of a sandbox: enough to say later what held it, and no path of the host.
pub fn record(spec: &Spec, seccomp: &SeccompProfile) -> Value {
    let mut writable: Vec<&str> = spec.writable.iter().map(String::as_str).chain(["/tmp", HOME]).collect();
    writable.sort_unstable();
    let mut mounts = vec![
        (WORKSPACE, "rw"),
        (IO_DIR, "ro"),
        ("/etc/hosts", "ro"),
        ("/etc/resolv.conf", "ro"),
        (SHIM, "ro"),
    ];
    mounts.extend(spec.model_dir.as_ref().map(|_| (MODEL_DIR, "ro")));
    let mount = |(target, mode): (&str, &str)| json!({ "target": target, "mode": mode });
    json!({
        "image": spec.image,
        "seccomp": seccomp.hash(),
        "refused_calls": match seccomp.told() {
            // It still refuses.
            Told::Nothing => "not recorded: this runtime does not tell of them",
            Told::Refused | Told::RefusedAndAddresses => "recorded",
        },
        "addresses": match seccomp.told() {
            Told::RefusedAndAddresses => "recorded",
            Told::Nothing | Told::Refused => "not recorded",
        },
        "user": { "uid": spec.user.uid, "gid": spec.user.gid },
        "limits": spec.limits,
        "held": spec.limits.held(spec.worktree_held),
        "runtime": spec.runtime,
        "notes": notes(spec.runtime.as_deref()),
        "network": "none",
        "capabilities": [],
        "no_new_privileges": true,
        "root": "read-only",
        "tmpfs": writable,
        "mounts": mounts.into_iter().map(mount).collect::<Vec<_>>(),
        "log_copy_bytes": spec.log_copy_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::spec::SandboxUser;

    fn spec() -> Spec {
        Spec {
            instance: "default".to_owned(),
            run_id: "01900000-0000-7000-8000-0123456789ab".parse().expect("uuid"),
            attempt: 2,
            image: format!("sha256:{}", "ab".repeat(32)).parse().expect("digest"),
            user: SandboxUser::new(10001, 10001).expect("not root"),
            limits: Limits::default(),
            worktree_held: Enforcement::Hard,
            workspace: "/srv/kage/w/1".into(),
            io_dir: "/srv/kage/r/1".into(),
            model_dir: None,
            shim: "/srv/kage/kage-shim".into(),
            writable: vec!["/var/tmp".to_owned()],
            runtime: None,
            log_copy_bytes: None,
        }
    }

    /// Reads as the profile that is in force; a change to it is a change to the sandbox.
    #[test]
    fn the_whole_body() {
        let body = container_body(&spec(), &SeccompProfile::built_in());
        let mut body = serde_json::to_value(body).expect("JSON");
        let seccomp = &mut body["HostConfig"]["SecurityOpt"][1];
        assert_eq!(seccomp.as_str(), Some(&*format!("seccomp={}", SeccompProfile::built_in().json())));
        *seccomp = "seccomp=(the profile, see `seccomp_profile`)".into();
        body.sort_all_objects();
        insta::assert_json_snapshot!("container_body", body);
    }

    #[test]
    fn the_record_names_what_held_the_run_and_no_host_path() {
        let mut record = record(&spec(), &SeccompProfile::built_in());
        assert!(!record.to_string().contains("/srv/kage"));
        record.sort_all_objects();
        insta::assert_json_snapshot!("record", record);
    }

    #[test]
    fn every_masked_path_is_one() {
        let paths = MASKED;
        assert!(
            paths.iter().all(|path| ["/proc/", "/sys/", "/dev/"].iter().any(|top| path.starts_with(top))),
            "{paths:?}"
        );
    }

    /// The one thing that a model adds: a read-only folder, in which the gateway listens.
    #[test]
    fn a_model_adds_one_mount() {
        let plain = container_body(&spec(), &SeccompProfile::built_in());
        let mut with_model = spec();
        with_model.model_dir = Some("/srv/kage/m/1".into());
        let mut body = container_body(&with_model, &SeccompProfile::built_in());
        let mounts = body.host_config.as_mut().and_then(|host| host.mounts.as_mut()).expect("mounts");
        let added = mounts.pop().expect("one more");
        insta::assert_json_snapshot!("model_mount", added);
        assert_eq!(body, plain);
        let record = record(&with_model, &SeccompProfile::built_in());
        assert!(!record.to_string().contains("/srv/kage"));
        assert_eq!(record["mounts"][5], json!({ "target": "/run/model", "mode": "ro" }));
    }

    #[test]
    fn a_log_copy_and_a_runtime_are_the_only_options() {
        let plain = container_body(&spec(), &SeccompProfile::built_in());
        let mut other = spec();
        other.log_copy_bytes = Some(1);
        other.runtime = Some("runsc".to_owned());
        let mut body = container_body(&other, &SeccompProfile::built_in());
        let host = body.host_config.as_mut().expect("set");
        let log = host.log_config.take().expect("set");
        assert_eq!(log.typ.as_deref(), Some("local"));
        assert_eq!(log.config.expect("capped")["max-size"], "4096");
        assert_eq!(host.runtime.take().as_deref(), Some("runsc"));
        let mut plain = plain;
        plain.host_config.as_mut().expect("set").log_config = None;
        assert_eq!(body, plain);
    }

    #[test]
    fn the_name_tells_nothing_but_differs() {
        let mut spec = spec();
        assert_eq!(spec.container_name(), "kage-0123456789ab-2");
        spec.attempt = 3;
        assert_eq!(spec.container_name(), "kage-0123456789ab-3");
    }
}
