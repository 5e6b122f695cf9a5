//! Judges what a shim found in its sandbox. Whatever was not asked for is a surprise, and one surprise is enough to
//! refuse the run: a wall that is not where it was put was not put there.

use std::collections::BTreeMap;

use kage_shim::containment::{Facts, Mount};

use crate::sandbox::profile::{HOME, IO_DIR, MODEL_DIR, SHIM, WORKSPACE, tmpfs_inodes};
use crate::sandbox::remap;
use crate::sandbox::shim_listener::SOCKET;
use crate::sandbox::spec::Spec;

/// The kinds of namespace that a sandbox must have of its own.
const OWN_NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
/// The host's, unless the engine remaps.
const USERS: &str = "user";

const DEVICES: [(&str, &str); 14] = [
    ("fd", "link"),
    ("full", "character"),
    ("mqueue", "folder"),
    ("null", "character"),
    ("ptmx", "link"),
    ("pts", "folder"),
    ("random", "character"),
    ("shm", "folder"),
    ("stderr", "link"),
    ("stdin", "link"),
    ("stdout", "link"),
    ("tty", "character"),
    ("urandom", "character"),
    ("zero", "character"),
];

/// What a kernel without a way out says. The last two: it has no IPv6.
const UNREACHABLE: [&str; 3] = ["ENETUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT"];
/// What gVisor's kernel says instead.
const UNREACHABLE_TOO: &str = "EHOSTUNREACH";
const NOBODY_LISTENS: &str = "ECONNREFUSED";
const REFUSED: [&str; 2] = ["EPERM", "ENOSYS"];

/// What a kernel of the runtime's own may grant, since it grants it of itself and not of the host.
const OF_ITS_OWN: [&str; 5] = ["device node", "packet socket", "raw socket", "set-user-id file", "splice"];

// What a kernel of the runtime's own does not show.
const RIGHTS_NOT_SEEN: &str =
    "ambient capabilities, no_new_privs and the seccomp mode: this runtime's own kernel does not show them";
const NAMESPACES_NOT_SEEN: &str =
    "namespaces: those inside are this runtime's own kernel's, and say nothing of the host's";
const MOUNTS_NOT_SEEN: &str =
    "nosuid, nodev and sizes of mounts: this runtime's own kernel does not show what holds on the host";
const DEVICES_NOT_SEEN: &str =
    "devices and masked paths: what stands there is made up by this runtime's own kernel";
const LIMITS_NOT_SEEN: &str =
    "limits: the host holds them around this runtime's own kernel, which does not show them inside";
const CALLS_NOT_SEEN: &str = "calls that this runtime's own kernel grants of itself (device nodes, raw and packet \
    sockets, set-user-id files, splice): the host is not asked for them";

/// Whose kernel answers inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The host's, behind our filter.
    Host,
    /// One of the runtime's own (gVisor, Kata): it knows neither our filter nor the host's limits, and what
    /// it says of its calls is not what the host's kernel would be asked.
    Own,
}

impl Kernel {
    /// By the name that an engine gives a runtime. One that is not known is taken for one of the host's.
    pub fn of(runtime: &str) -> Self {
        if ["runsc", "kata"].iter().any(|own| runtime.contains(own)) { Self::Own } else { Self::Host }
    }
}

/// This process's own namespaces. No sandbox may share them, but for the users'.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn namespaces_here() -> std::io::Result<BTreeMap<String, String>> {
    let name = |kind: &str| {
        let link = std::fs::read_link(format!("/proc/self/ns/{kind}"))?;
        Ok((kind.to_owned(), link.to_string_lossy().into_owned()))
    };
    OWN_NAMESPACES.into_iter().chain([USERS]).map(name).collect()
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub seen: Seen,
    /// What `spec` did not ask for, in words.
    pub surprises: Vec<String>,
}

/// How much of a thing a shim can see; the rest in words, with the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    All,
    Part(&'static str),
    Nothing(&'static str),
}

/// Everything that is looked at. `here`: [`namespaces_here`].
pub fn examine(spec: &Spec, kernel: Kernel, here: &BTreeMap<String, String>, facts: &Facts) -> Vec<Check> {
    let check = |name, seen_on_its_own, look: &dyn Fn(&mut Vec<String>)| {
        let mut surprises = Vec::new();
        let seen = if kernel == Kernel::Host { Seen::All } else { seen_on_its_own };
        if !matches!(seen, Seen::Nothing(_)) {
            look(&mut surprises);
        }
        Check { name, seen, surprises }
    };
    use Seen::{All, Nothing, Part};
    vec![
        check("rights", Part(RIGHTS_NOT_SEEN), &|found| rights(spec, kernel, facts, found)),
        check("namespaces", Nothing(NAMESPACES_NOT_SEEN), &|found| namespaces(here, facts, found)),
        check("users", Nothing(NAMESPACES_NOT_SEEN), &|found| users(spec, here, facts, found)),
        check("network", All, &|found| network(kernel, facts, found)),
        check("mounts", Part(MOUNTS_NOT_SEEN), &|found| mounts(spec, kernel, facts, found)),
        check("devices", Nothing(DEVICES_NOT_SEEN), &|found| devices(facts, found)),
        check("sockets", All, &|found| sockets(spec, facts, found)),
        check("limits", Nothing(LIMITS_NOT_SEEN), &|found| limits(spec, facts, found)),
        check("calls", Part(CALLS_NOT_SEEN), &|found| calls(kernel, facts, found)),
    ]
}

/// Everything in `facts` that `spec` did not ask for, in words; empty: contained. `here`: [`namespaces_here`].
pub fn surprises(spec: &Spec, kernel: Kernel, here: &BTreeMap<String, String>, facts: &Facts) -> Vec<String> {
    examine(spec, kernel, here, facts).into_iter().flat_map(|check| check.surprises).collect()
}

fn rights(spec: &Spec, kernel: Kernel, facts: &Facts, found: &mut Vec<String>) {
    let (uid, gid) = (spec.user.uid.to_string(), spec.user.gid.to_string());
    let four = |id: &str| [id; 4].join(" ");
    let none = "0000000000000000".to_owned();
    let mut expected = vec![("Uid", four(&uid)), ("Gid", four(&gid))];
    expected.extend(["CapInh", "CapPrm", "CapEff", "CapBnd"].map(|set| (set, none.clone())));
    // gVisor's kernel does not show these.
    if kernel == Kernel::Host {
        expected.extend([("CapAmb", none), ("NoNewPrivs", "1".to_owned()), ("Seccomp", "2".to_owned())]);
    }
    for (field, expected) in expected {
        let seen = facts.status.get(field).map(String::as_str);
        if seen != Some(&*expected) {
            found.push(format!("{field} is {}, not {expected}", seen.unwrap_or("not known")));
        }
    }
    let groups = facts.status.get("Groups").map(String::as_str);
    if !matches!(groups, Some(groups) if groups.is_empty() || groups == gid) {
        found.push(format!("it is in the groups {:?}", groups.unwrap_or("not known")));
    }
    if facts.pid != 1 {
        found.push(format!("the shim is process {}, not the first of its namespace", facts.pid));
    }
}

fn namespaces(here: &BTreeMap<String, String>, facts: &Facts, found: &mut Vec<String>) {
    for kind in OWN_NAMESPACES {
        match (facts.namespaces.get(kind), here.get(kind)) {
            (Some(inside), Some(host)) if inside.starts_with(kind) && inside != host => {}
            (inside, _) => found.push(format!("no {kind} namespace of its own ({inside:?})")),
        }
    }
}

/// Who the sandbox's user is on the host, by the kernel's own word: whose files it may change there.
fn users(spec: &Spec, here: &BTreeMap<String, String>, facts: &Facts, found: &mut Vec<String>) {
    let (uid, gid) = spec.user.on_host();
    let same_namespace = facts.namespaces.get(USERS).is_some_and(|inside| here.get(USERS) == Some(inside));
    for (map, inside, expected) in
        [("UidMap", spec.user.uid.get(), uid), ("GidMap", spec.user.gid.get(), gid)]
    {
        let map = facts.status.get(map).map_or("", String::as_str);
        let seen = if same_namespace { Some(inside) } else { remap::outside(map, inside) };
        if seen != Some(expected) {
            found.push(format!("its user {inside} is {seen:?} on the host, not {expected} (map {map:?})"));
        }
    }
}

fn network(kernel: Kernel, facts: &Facts, found: &mut Vec<String>) {
    if facts.interfaces.iter().any(|name| name != "lo") {
        found.push(format!("network interfaces {:?}", facts.interfaces));
    }
    found.extend(facts.routes.iter().map(|route| format!("a route {route:?}")));
    found.extend(facts.resolvers.iter().map(|address| format!("a resolver {address:?}")));
    let unreachable =
        |answer: &str| UNREACHABLE.contains(&answer) || (kernel == Kernel::Own && answer == UNREACHABLE_TOO);
    for (to, answer) in &facts.reached {
        let expected = if to.starts_with("name lookup") {
            answer == NOBODY_LISTENS || unreachable(answer)
        } else {
            unreachable(answer)
        };
        if !expected {
            found.push(format!("{to} can be asked ({answer})"));
        }
    }
}

fn mounts(spec: &Spec, kernel: Kernel, facts: &Facts, found: &mut Vec<String>) {
    let writable =
        |at: &str| [WORKSPACE, HOME, "/tmp"].contains(&at) || spec.writable.iter().any(|path| path == at);
    let read_only = |at: &str| {
        let always = ["/", IO_DIR, SHIM, "/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];
        always.contains(&at) || (at == MODEL_DIR && spec.model_dir.is_some())
    };
    let of_kernel = |at: &str| ["/proc", "/sys", "/dev"].iter().any(|top| is_within(at, top));
    // A worktree that is a plain copy is on whatever file system the data folder is.
    let of_ours = |mount: &Mount| mount.at != WORKSPACE || mount.kind == "overlay";
    for mount in &facts.mounts {
        let has = |option: &str| mount.options.iter().any(|one| one == option);
        let at = &mount.at;
        if writable(at) {
            if of_ours(mount) && kernel == Kernel::Host && !(has("nosuid") && has("nodev")) {
                found.push(format!("{at} takes set-user-id programs or devices ({:?})", mount.options));
            }
            if at != WORKSPACE && mount.kind != "tmpfs" {
                found.push(format!("{at} is a {}, not a tmpfs", mount.kind));
            }
        } else if !read_only(at) && !of_kernel(at) {
            found.push(format!("{at} is mounted ({}), and nobody asked for it", mount.kind));
        } else if read_only(at) && !has("ro") {
            found.push(format!("{at} is not read-only"));
        } else if mount.writable && !is_covered(mount) && !is_lent_device(spec, mount) {
            found.push(format!("{at} can be written"));
        }
    }
    let required =
        [WORKSPACE, HOME, "/tmp", IO_DIR, SHIM].into_iter().chain(spec.writable.iter().map(String::as_str));
    for at in required.chain(spec.model_dir.is_some().then_some(MODEL_DIR)) {
        if !facts.mounts.iter().any(|mount| mount.at == at) {
            found.push(format!("{at} is not mounted"));
        }
    }
    if kernel == Kernel::Host {
        sizes(spec, facts, found);
    }
}

/// Devices, and what the kernel shows of itself.
fn devices(facts: &Facts, found: &mut Vec<String>) {
    for (name, kind) in &facts.devices {
        if !DEVICES.contains(&(name, kind)) {
            found.push(format!("a device /dev/{name} ({kind})"));
        }
    }
    found.extend(facts.unmasked.iter().map(|path| format!("{path} can be read")));
}

/// A masked file is covered by the null device, which everybody may write: that it tells nothing is seen elsewhere.
fn is_covered(mount: &Mount) -> bool {
    mount.kind == "devpts" || (kage_shim::containment::MASKED.contains(&&*mount.at))
}

/// Nobody can make device nodes in a user namespace of his own, so runtimes lend the host's. That each is a device, and
/// of those that every sandbox has, is looked at with all of them.
fn is_lent_device(spec: &Spec, mount: &Mount) -> bool {
    let remapped = spec.user.on_host() != (spec.user.uid.get(), spec.user.gid.get());
    remapped && DEVICES.iter().any(|(name, kind)| *kind == "character" && mount.at == format!("/dev/{name}"))
}

fn is_within(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Every tmpfs that can be written has its limits.
fn sizes(spec: &Spec, facts: &Facts, found: &mut Vec<String>) {
    let size = format!("size={}k", spec.limits.tmp_bytes.div_ceil(4096) * 4);
    let inodes = tmpfs_inodes(&spec.limits);
    let tmpfs = |mount: &&Mount| mount.writable && mount.kind == "tmpfs" && !is_covered(mount);
    for mount in facts.mounts.iter().filter(tmpfs) {
        let inodes_are = mount.size.iter().find_map(|one| one.strip_prefix("nr_inodes="));
        if !mount.size.contains(&size) || inodes_are.and_then(number) != Some(inodes) {
            found.push(format!("{} has the limits {:?}", mount.at, mount.size));
        }
    }
}

/// The kernel prints a round number of inodes as `2k`.
fn number(text: &str) -> Option<u64> {
    match text.strip_suffix('k') {
        Some(thousands) => Some(thousands.parse::<u64>().ok()? * 1024),
        None => text.parse().ok(),
    }
}

fn sockets(spec: &Spec, facts: &Facts, found: &mut Vec<String>) {
    let own = format!("{IO_DIR}/{SOCKET}");
    for socket in &facts.sockets {
        let model = spec.model_dir.is_some() && socket == crate::sandbox::profile::MODEL_SOCKET;
        if *socket != own && !model {
            found.push(format!("a socket {socket:?}"));
        }
    }
}

fn limits(spec: &Spec, facts: &Facts, found: &mut Vec<String>) {
    let limits = &spec.limits;
    let same = |value: u64| format!("{value}:{value}");
    for (name, expected) in [
        ("core", same(0)),
        ("nofile", same(u64::from(limits.open_files))),
        ("fsize", same(limits.file_bytes)),
    ] {
        let seen = facts.limits.get(name).map_or("not known", String::as_str);
        if seen != expected {
            found.push(format!("the limit {name} is {seen}, not {expected}"));
        }
    }
    let group = |name: &str| facts.limits.get(name).and_then(|text| text.split_once(' '));
    // Counted in pages.
    let memory = limits.memory_bytes / 4096 * 4096;
    if group("memory").and_then(|(_, value)| value.parse().ok()) != Some(memory) {
        found.push(format!("the memory limit is {:?}, not {memory}", group("memory")));
    }
    let no_swap = match group("swap") {
        Some(("v2", value)) => value == "0",
        Some((_, value)) => value.parse() == Ok(memory),
        None => facts.limits.get("host_swap").is_some_and(|total| total.starts_with("0 ")),
    };
    if !no_swap {
        found.push(format!("the limit of memory and swap is {:?}", group("swap")));
    }
    if group("pids").and_then(|(_, value)| value.parse().ok()) != Some(limits.pids) {
        found.push(format!("the limit of processes is {:?}, not {}", group("pids"), limits.pids));
    }
    if cpu_millis(facts) != Some(limits.cpu_millis) {
        found.push(format!("the CPU limit is {:?}, not {} thousandths", group("cpu"), limits.cpu_millis));
    }
}

fn cpu_millis(facts: &Facts) -> Option<u64> {
    let (version, text) = facts.limits.get("cpu")?.split_once(' ')?;
    let (quota, period) = match version {
        "v2" => text.split_once(' ')?,
        _ => (text, facts.limits.get("cpu_period")?.as_str()),
    };
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota * 1000).checked_div(period)
}

fn calls(kernel: Kernel, facts: &Facts, found: &mut Vec<String>) {
    for (call, answer) in &facts.calls {
        let refused = match kernel {
            Kernel::Host => REFUSED.contains(&&**answer),
            Kernel::Own => answer != "ok" || OF_ITS_OWN.contains(&&**call),
        };
        if !refused {
            found.push(format!("{call} was not refused ({answer})"));
        }
    }
    if facts.calls.is_empty() || facts.reached.is_empty() || facts.mounts.is_empty() {
        found.push("the shim did not look".to_owned());
    }
}
