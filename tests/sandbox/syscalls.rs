//! System calls: what the probe is refused in a sandbox, and that the kernel would have taken it otherwise.

use std::collections::{BTreeSet, HashMap};

use crate::support::{Walls, World, numbers};

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

async fn in_sandbox(world: &World, what: &str) -> HashMap<String, i32> {
    probe_in(world, None, what).await
}

async fn probe_in(world: &World, walls: Option<Walls>, what: &str) -> HashMap<String, i32> {
    let probe = world.path("probe");
    if !probe.exists() {
        std::fs::copy(crate::support::probe(), &probe).expect("copies");
    }
    // The probe travels inside the script: the same way for both kinds of container.
    let encoded = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        std::fs::read(&probe).expect("reads"),
    );
    let script = format!(
        "mkdir d; cd d; base64 -d >../probe <<'END'\n{encoded}\nEND\nchmod 755 ../probe; ../probe {what}"
    );
    let text = match walls {
        None => world.output(&script).await,
        Some(walls) => world.plain_output(walls, &script).await,
    };
    numbers(&text)
}

#[tokio::test]
async fn no_forbidden_call_gets_through() {
    let world = World::new().await;
    let open = probe_in(&world, Some(Walls::None), "calls").await;
    let ours = in_sandbox(&world, "calls").await;
    assert_eq!(open.keys().collect::<BTreeSet<_>>(), ours.keys().collect::<BTreeSet<_>>());
    let mut shown = 0;
    for (name, answer) in &ours {
        assert!(matches!(*answer, EPERM | ENOSYS), "{name} got through: errno {answer}");
        // Where the bare kernel says the same, that call proves nothing.
        if !matches!(open[name], EPERM | ENOSYS) {
            shown += 1;
        }
    }
    assert!(ours.len() >= 115, "{} calls were tried", ours.len());
    assert!(
        shown * 10 >= ours.len() * 9,
        "only {shown} of {} calls would have got through without us",
        ours.len()
    );
}

#[tokio::test]
async fn runtimes_are_told_to_fall_back_and_programs_work() {
    let world = World::new().await;
    let calls = in_sandbox(&world, "calls").await;
    for name in ["clone3", "io_uring_setup", "openat2"] {
        assert_eq!(calls[name], ENOSYS, "{name}");
    }
    let needed = in_sandbox(&world, "needed").await;
    for name in
        ["thread", "chmod", "mkfifo", "open_create", "memfd_create", "personality_query", "socketpair"]
    {
        assert_eq!(needed[name], 0, "{name}");
    }
}

#[tokio::test]
async fn only_ordinary_sockets_exist() {
    let world = World::new().await;
    let all: BTreeSet<String> = in_sandbox(&world, "sockets").await.into_keys().collect();
    // Unix sockets of every type; TCP and UDP; netlink's routing protocol, which counts as 0.
    let allowed = |name: &str| {
        let unix = name.starts_with("socket_1_");
        let inet = [
            "2_1_0", "2_1_6", "2_2_0", "2_2_17", "10_1_0", "10_1_6", "10_2_0", "10_2_17", "16_2_0", "16_3_0",
        ];
        unix || inet.iter().any(|rest| name == format!("socket_{rest}"))
    };
    let surprising: Vec<_> = all.iter().filter(|name| !allowed(name)).collect();
    assert!(surprising.is_empty(), "{surprising:?}");
    for name in ["socket_1_1_0", "socket_2_1_0", "socket_2_2_17"] {
        assert!(all.contains(name), "{name} is missing");
    }
    let open = probe_in(&world, Some(Walls::None), "sockets").await;
    for name in ["socket_2_3_255", "socket_2_3_1", "netlink_15", "netlink_16"] {
        assert!(open.contains_key(name), "{name} would not have worked without us");
    }
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn calls_of_another_architecture_kill() {
    let world = World::new().await;
    const SIGSYS: i32 = 31;
    let ours = in_sandbox(&world, "architecture").await;
    assert_eq!((ours["int80"], ours["x32"]), (SIGSYS, SIGSYS));
}

#[tokio::test]
async fn a_set_user_id_program_gives_nothing() {
    let world = World::new().await;
    let run = |spec: &kage::sandbox::spec::Spec| {
        world.give_probe(spec);
        let probe = spec.workspace.join("probe");
        std::os::unix::fs::chown(&probe, Some(0), Some(0)).expect("chown");
        std::fs::set_permissions(&probe, std::os::unix::fs::PermissionsExt::from_mode(0o4755))
            .expect("chmod");
    };
    let spec = world.spec("./probe euid >out");
    run(&spec);
    let _ = world.run(&spec).await;
    let ours = std::fs::read_to_string(spec.workspace.join("out")).expect("out");
    assert_eq!(ours, format!("euid {}\n", crate::support::UID));
    // The same file without our walls.
    let probe = spec.workspace.join("probe");
    let bytes = std::fs::read(&probe).expect("reads");
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    let script = format!(
        "base64 -d >/tmp/probe <<'END'\n{encoded}\nEND\nchmod 4755 /tmp/probe; exec perl -e '$) = $( = 10001; $> = $< = 10001; exec \"/tmp/probe\", \"euid\"'"
    );
    assert_eq!(world.plain_output(Walls::Dockers, &script).await, "euid 0\n");
}
