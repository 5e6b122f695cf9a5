//! The shim's look around, and what is made of it: nothing is found in a sandbox of ours, and each wall that is
//! left out is.

use bollard::models::{ContainerCreateBody, HostConfig, HostConfigCgroupnsModeEnum, Mount, MountType};
use kage::sandbox::container::Sandbox;
use kage::sandbox::profile::container_body;
use kage::sandbox::proof::{Kernel, namespaces_here, surprises};
use kage::sandbox::remap::Users;
use kage::sandbox::seccomp::SeccompProfile;
use kage::sandbox::shim_listener::ShimListener;
use kage::sandbox::spec::{SandboxUser, Spec};
use kage_shim::containment::{Facts, Mount as SeenMount};

use crate::shim::{LONG, shim};
use crate::support::{LABEL, LABEL_VALUE, World};

/// What a shim finds in a sandbox of this specification, after `change` was made to what the engine is asked for.
async fn look(world: &World, spec: &Spec, change: impl FnOnce(&mut ContainerCreateBody)) -> Facts {
    let mut body = container_body(spec, &SeccompProfile::built_in());
    body.labels.get_or_insert_default().insert(LABEL.to_owned(), LABEL_VALUE.to_owned());
    change(&mut body);
    let listener = ShimListener::bind(&spec.io_dir, spec.user).expect("listens");
    let made = world.engine.api().create_container(None, body).await.expect("creates");
    let mut sandbox = Sandbox::adopt(&world.engine, &made.id).await.expect("adopts");
    sandbox.start().await.expect("starts");
    let (_, facts) = listener.accept_first(LONG).await.expect("links");
    sandbox.remove().await.expect("is removed");
    facts
}

fn judged(spec: &Spec, facts: &Facts) -> Vec<String> {
    surprises(spec, Kernel::Host, &namespaces_here().expect("this process's"), facts)
}

fn spec(world: &World) -> Spec {
    Spec { shim: shim(), ..world.spec("") }
}

#[tokio::test]
async fn nothing_surprises_in_a_sandbox_of_ours() {
    let world = World::new().await;
    let mut spec = spec(&world);
    spec.writable = vec!["/var/tmp".to_owned(), "/dev/shm".to_owned()];
    let facts = look(&world, &spec, |_| {}).await;
    assert_eq!(judged(&spec, &facts), [] as [&str; 0], "{facts:#?}");
    assert_eq!(facts.calls.len(), 19, "{:?}", facts.calls);
    assert_eq!(facts.reached.len(), 7, "{:?}", facts.reached);
    println!("looked for {} microseconds", facts.micros);
}

/// An engine that maps users otherwise than it says, or not at all.
#[tokio::test]
async fn whose_files_it_may_change_is_asked_of_the_kernel() {
    let world = World::new().await;
    let mut spec = spec(&world);
    let facts = look(&world, &spec, |_| {}).await;
    let shifted = Users::Shifted { uid: 100_000, gid: 200_000 };
    spec.user = spec.user.of_engine(shifted).expect("nobody's");
    let found = judged(&spec, &facts);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("on the host, not 110001"), "{found:?}");
    assert!(found[1].contains("on the host, not 210001"), "{found:?}");
    // As a sandbox with such a map would say.
    let mut remapped = facts.clone();
    remapped.namespaces.insert("user".to_owned(), "user:[1]".to_owned());
    remapped.status.insert("UidMap".to_owned(), "0 100000 65536".to_owned());
    remapped.status.insert("GidMap".to_owned(), "0 200000 65536".to_owned());
    let lent = |at: &str| SeenMount {
        at: at.to_owned(),
        kind: "devtmpfs".to_owned(),
        options: vec!["rw".to_owned(), "nosuid".to_owned()],
        writable: true,
        ..SeenMount::default()
    };
    remapped.mounts.push(lent("/dev/null"));
    assert_eq!(judged(&spec, &remapped), [] as [&str; 0]);
    let mut another = remapped.clone();
    another.mounts.push(lent("/dev/sda"));
    assert_eq!(judged(&spec, &another), ["/dev/sda can be written"]);
    remapped.status.insert("GidMap".to_owned(), "0 200000 10001".to_owned());
    assert_eq!(judged(&spec, &remapped).len(), 1);
    spec.user = SandboxUser::new(10001, 10001).expect("not root");
    assert_eq!(judged(&spec, &remapped).len(), 3, "others, and a device that need not be lent");
}

type Change = fn(&mut ContainerCreateBody);

fn host(body: &mut ContainerCreateBody) -> &mut HostConfig {
    body.host_config.as_mut().expect("set")
}

/// Each is a mistake that somebody could make in the profile, or an engine that does not do as it is told.
const OPEN_WALLS: &[(&str, Change, &str)] = &[
    (
        "Docker's own network",
        |body| {
            body.network_disabled = None;
            host(body).network_mode = Some("bridge".to_owned());
        },
        "network interfaces",
    ),
    (
        "the host's network",
        |body| {
            body.network_disabled = None;
            body.hostname = None;
            host(body).network_mode = Some("host".to_owned());
        },
        "no net namespace of its own",
    ),
    ("a right too many", |body| host(body).cap_add = Some(vec!["NET_RAW".to_owned()]), "CapBnd is"),
    (
        "privileged",
        |body| {
            host(body).privileged = Some(true);
            host(body).security_opt = None;
        },
        "a device /dev/",
    ),
    (
        "rights can be gained",
        |body| {
            host(body).security_opt.as_mut().expect("set").retain(|one| !one.starts_with("no-new"));
            // runc needs more than our filter to set up such a container.
            host(body).security_opt = Some(vec!["seccomp=unconfined".to_owned()]);
        },
        "NoNewPrivs is 0",
    ),
    (
        "no filter",
        |body| {
            host(body).security_opt =
                Some(vec!["no-new-privileges".to_owned(), "seccomp=unconfined".to_owned()]);
        },
        "Seccomp is 0",
    ),
    (
        "Docker's own filter",
        |body| {
            host(body).security_opt = Some(vec!["no-new-privileges".to_owned()]);
        },
        "splice was not refused",
    ),
    ("a group too many", |body| host(body).group_add = Some(vec!["0".to_owned()]), "it is in the groups"),
    (
        "a root that can be written",
        |body| {
            host(body).readonly_rootfs = Some(false);
        },
        "/ is not read-only",
    ),
    (
        "a folder of the host",
        |body| {
            let mount = Mount {
                typ: Some(MountType::BIND),
                source: Some("/etc".to_owned()),
                target: Some("/mnt".to_owned()),
                read_only: Some(true),
                ..Mount::default()
            };
            host(body).mounts.as_mut().expect("set").push(mount);
        },
        "/mnt is mounted",
    ),
    (
        "the engine's socket",
        |body| {
            let mount = Mount {
                typ: Some(MountType::BIND),
                source: Some("/var/run/docker.sock".to_owned()),
                target: Some("/run/docker.sock".to_owned()),
                ..Mount::default()
            };
            host(body).mounts.as_mut().expect("set").push(mount);
        },
        "a socket \"/run/docker.sock\"",
    ),
    ("no masked paths", |body| host(body).masked_paths = Some(Vec::new()), "/proc/kallsyms can be read"),
    ("the host's processes", |body| host(body).pid_mode = Some("host".to_owned()), "no pid namespace"),
    ("the host's memory segments", |body| host(body).ipc_mode = Some("host".to_owned()), "no ipc namespace"),
    (
        "the host's control groups",
        |body| {
            host(body).cgroupns_mode = Some(HostConfigCgroupnsModeEnum::HOST);
        },
        "no cgroup namespace",
    ),
    (
        "memory without a limit",
        |body| {
            host(body).memory = None;
            host(body).memory_swap = None;
        },
        "the memory limit is",
    ),
    ("processes without a limit", |body| host(body).pids_limit = None, "the limit of processes is"),
    ("all the CPU", |body| host(body).nano_cpus = None, "the CPU limit is"),
    ("core files", |body| host(body).ulimits = None, "the limit core is"),
    (
        "a tmpfs without a limit",
        |body| {
            let tmpfs = host(body).tmpfs.as_mut().expect("set");
            tmpfs.insert("/tmp".to_owned(), "rw,exec,nosuid,nodev,mode=1777".to_owned());
        },
        "/tmp has the limits",
    ),
    (
        "a tmpfs that takes devices",
        |body| {
            let tmpfs = host(body).tmpfs.as_mut().expect("set");
            let options = tmpfs["/tmp"].replace("nodev", "dev");
            tmpfs.insert("/tmp".to_owned(), options);
        },
        "/tmp takes set-user-id programs or devices",
    ),
];

#[tokio::test]
async fn each_wall_that_is_left_out_is_seen() {
    let world = World::new().await;
    for (name, change, expected) in OPEN_WALLS {
        let spec = spec(&world);
        let found = judged(&spec, &look(&world, &spec, change).await);
        println!("{name}: {found:?}");
        assert!(found.iter().any(|one| one.contains(expected)), "{name}: {expected:?} is not in {found:#?}");
    }
}
