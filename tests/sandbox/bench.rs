//! Section 5 of the CIS Docker Benchmark as docker-bench-security checks it, by number and title, over `docker inspect`
//! of a live run. That program is in no package registry, so its checks are written here, from its text of 2024-10.

use serde_json::Value;

/// What a check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Warn,
    /// A note to the operator: there is nothing of a container to look at.
    Note,
    /// Right for a service, and not for a sandbox; why is said in docs/security.md.
    NotMeant,
}

pub struct Check {
    pub number: &'static str,
    pub title: &'static str,
    pub verdict: Verdict,
}

/// What the checks look at.
pub struct Live<'a> {
    pub inspect: &'a Value,
    /// The engine's `info`.
    pub info: &'a Value,
    /// Names of the container's processes.
    pub processes: &'a [String],
    /// The host's own namespaces are told apart from the container's by these (`pid`, `ipc`, `uts`, `net`, `cgroup`).
    pub shares_namespace: &'a dyn Fn(&str) -> bool,
}

impl Live<'_> {
    fn host(&self, field: &str) -> &Value {
        &self.inspect["HostConfig"][field]
    }

    fn text(&self, field: &str) -> &str {
        self.host(field).as_str().unwrap_or_default()
    }

    fn number(&self, field: &str) -> i64 {
        self.host(field).as_i64().unwrap_or_default()
    }

    /// Neither asked for the host's namespace nor in it.
    fn own(&self, namespace: &str, field: &str) -> Verdict {
        ok(self.text(field) != "host" && !(self.shares_namespace)(namespace))
    }

    fn is_empty(&self, field: &str) -> bool {
        match self.host(field) {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            Value::String(text) => text.is_empty(),
            _ => false,
        }
    }

    fn security(&self, wanted: impl Fn(&str) -> bool) -> bool {
        let options = self.host("SecurityOpt").as_array().map(Vec::as_slice).unwrap_or_default();
        options.iter().filter_map(Value::as_str).any(wanted)
    }

    fn engine_has(&self, name: &str) -> bool {
        let options = self.info["SecurityOptions"].as_array().map(Vec::as_slice).unwrap_or_default();
        options.iter().filter_map(Value::as_str).any(|option| option.starts_with(&format!("name={name}")))
    }

    fn mounts(&self) -> &[Value] {
        self.inspect["Mounts"].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn sensitive_mount(&self) -> bool {
        let top = ["/", "/boot", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr"];
        self.mounts().iter().any(|mount| {
            let is = |field: &str| mount[field].as_str().is_some_and(|path| top.contains(&path));
            mount["RW"] == true && (is("Source") || is("Destination"))
        })
    }

    fn socket_mount(&self) -> bool {
        self.mounts().iter().any(|mount| {
            ["Source", "Destination"]
                .iter()
                .any(|field| mount[*field].as_str().is_some_and(|path| path.ends_with("docker.sock")))
        })
    }
}

/// All of 5.1 to 5.32.
pub fn section_5(live: &Live<'_>) -> Vec<Check> {
    let all = first_half(live).into_iter().chain(second_half(live));
    all.map(|(number, title, verdict)| Check { number, title, verdict }).collect()
}

const fn ok(holds: bool) -> Verdict {
    if holds { Verdict::Pass } else { Verdict::Warn }
}

type Row = (&'static str, &'static str, Verdict);

fn first_half(live: &Live<'_>) -> [Row; 16] {
    let published = live.inspect["NetworkSettings"]["Ports"].as_object();
    let no_port = || published.is_none_or(|ports| ports.values().all(Value::is_null));
    let apparmor = live.inspect["AppArmorProfile"].as_str().unwrap_or_default();
    let dropped = live.host("CapDrop").as_array().is_some_and(|list| list.iter().any(|one| one == "ALL"));
    [
        ("5.1", "swarm mode is not enabled", ok(live.info["Swarm"]["LocalNodeState"] != "active")),
        // Where the host has none there is none to enable: the host check tells the operator.
        (
            "5.2",
            "an AppArmor profile is enabled, if applicable",
            if live.engine_has("apparmor") {
                ok(!apparmor.is_empty() && apparmor != "unconfined")
            } else {
                Verdict::Note
            },
        ),
        (
            "5.3",
            "SELinux security options are set, if applicable",
            if live.engine_has("selinux") { ok(!live.is_empty("SecurityOpt")) } else { Verdict::Note },
        ),
        ("5.4", "Linux kernel capabilities are restricted", ok(live.is_empty("CapAdd") && dropped)),
        ("5.5", "privileged containers are not used", ok(live.host("Privileged") == false)),
        ("5.6", "sensitive host directories are not mounted", ok(!live.sensitive_mount())),
        (
            "5.7",
            "sshd is not run within containers",
            ok(!live.processes.iter().any(|name| name.contains("sshd"))),
        ),
        ("5.8", "privileged ports are not mapped", ok(no_port())),
        ("5.9", "only needed ports are open", ok(no_port())),
        ("5.10", "the host's network namespace is not shared", live.own("net", "NetworkMode")),
        (
            "5.11",
            "the memory usage is limited",
            ok(live.number("Memory") > 0 && live.number("MemorySwap") == live.number("Memory")),
        ),
        ("5.12", "CPU priority is set", ok(live.number("NanoCpus") > 0)),
        ("5.13", "the root filesystem is mounted read-only", ok(live.host("ReadonlyRootfs") == true)),
        ("5.14", "incoming traffic is bound to a specific host interface", ok(no_port())),
        (
            "5.15",
            "the 'on-failure' restart policy is set to 5 at most",
            ok(live.host("RestartPolicy")["MaximumRetryCount"].as_i64().is_none_or(|most| most <= 5)
                && live.host("RestartPolicy")["Name"] == "no"),
        ),
        ("5.16", "the host's process namespace is not shared", live.own("pid", "PidMode")),
    ]
}

fn second_half(live: &Live<'_>) -> [Row; 16] {
    let shared = |mount: &Value| mount["Propagation"].as_str().is_some_and(|kind| kind.ends_with("shared"));
    let networks = live.inspect["NetworkSettings"]["Networks"].as_object();
    let docker0 = networks.is_some_and(|networks| networks.contains_key("bridge"));
    [
        ("5.17", "the host's IPC namespace is not shared", live.own("ipc", "IpcMode")),
        (
            "5.18",
            "host devices are not directly exposed",
            ok(live.is_empty("Devices")
                && live.is_empty("DeviceRequests")
                && live.is_empty("DeviceCgroupRules")),
        ),
        ("5.19", "the default ulimit is overwritten", ok(!live.is_empty("Ulimits"))),
        ("5.20", "mount propagation is not set to shared", ok(!live.mounts().iter().any(shared))),
        ("5.21", "the host's UTS namespace is not shared", live.own("uts", "UTSMode")),
        (
            "5.22",
            "seccomp is not disabled",
            ok(live.security(|option| option.starts_with("seccomp="))
                && !live.security(|option| option.contains("unconfined"))),
        ),
        ("5.23", "docker exec is not used with privileged", Verdict::Note),
        ("5.24", "docker exec is not used with user=root", Verdict::Note),
        (
            "5.25",
            "cgroup usage is confirmed",
            ok(live.is_empty("CgroupParent") && !(live.shares_namespace)("cgroup")),
        ),
        (
            "5.26",
            "no additional privileges can be acquired",
            ok(live.security(|option| option.starts_with("no-new-privileges") && !option.ends_with("false"))),
        ),
        // The shim's link and the idle limit are what tells; a health check would run another process beside it.
        ("5.27", "container health is checked", Verdict::NotMeant),
        ("5.28", "the latest version of the image is used", Verdict::Note),
        ("5.29", "the PIDs limit is used", ok(live.number("PidsLimit") > 0)),
        ("5.30", "Docker's default bridge docker0 is not used", ok(!docker0)),
        ("5.31", "the host's user namespace is not shared", ok(live.text("UsernsMode") != "host")),
        ("5.32", "the Docker socket is not mounted", ok(!live.socket_mount())),
    ]
}
