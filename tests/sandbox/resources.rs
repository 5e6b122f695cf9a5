//! Limits: each is driven over, and only the sandbox feels it.

use std::fs;

use crate::support::World;

#[tokio::test]
async fn memory_is_limited_and_said_so() {
    let world = World::new().await;
    let mut spec = world
        .spec("exec perl -e '$x = \"a\" x (1 << 20); push @y, $x . $_ for 1..1000; print \"survived\"' >out");
    spec.limits.memory_bytes = 64 << 20;
    let ended = world.run(&spec).await;
    assert_eq!((ended.exit_code, ended.oom_killed), (137, true), "{ended:?}");
    assert_eq!(fs::read_to_string(spec.workspace.join("out")).expect("out"), "");

    let mut spec = world
        .spec("exec perl -e '$x = \"a\" x (1 << 20); push @y, $x . $_ for 1..100; print \"survived\"' >out");
    spec.limits.memory_bytes = 512 << 20;
    let ended = world.run(&spec).await;
    assert_eq!((ended.exit_code, ended.oom_killed), (0, false), "{ended:?}");
    assert_eq!(fs::read_to_string(spec.workspace.join("out")).expect("out"), "survived");
}

#[tokio::test]
async fn a_child_that_runs_out_of_memory_is_seen_too() {
    let world = World::new().await;
    let mut spec =
        world.spec("perl -e '$x = \"a\" x (1 << 20); push @y, $x . $_ for 1..1000'; echo $? >out; exit 7");
    spec.limits.memory_bytes = 64 << 20;
    let ended = world.run(&spec).await;
    assert_eq!(fs::read_to_string(spec.workspace.join("out")).expect("out"), "137\n");
    assert_eq!((ended.exit_code, ended.oom_killed), (7, true), "{ended:?}");
}

#[tokio::test]
async fn a_fork_bomb_stays_inside() {
    let world = World::new().await;
    let mut spec = world.spec(
        "perl -e 'for (1..200) { $p = fork; last unless defined $p; if (!$p) { sleep 60; exit } $n++ } print $n' >out; kill -9 -1; exit 0",
    );
    spec.limits.pids = 32;
    let ended = world.run(&spec).await;
    assert_eq!(ended.exit_code, 0);
    let children: u32 =
        fs::read_to_string(spec.workspace.join("out")).expect("out").parse().expect("a number");
    assert!((16..32).contains(&children), "{children} children");

    // One that does not end by itself: it can be ended all the same.
    let mut spec = world.spec("bomb() { bomb | bomb & }; bomb; touch begun; while :; do sleep 1; done");
    spec.limits.pids = 64;
    let mut sandbox = world.started(&spec).await;
    crate::support::eventually("the bomb has begun", async || spec.workspace.join("begun").exists()).await;
    sandbox.remove().await.expect("is removed");
}

#[tokio::test]
async fn files_and_tmpfs_have_an_end() {
    let world = World::new().await;
    let mut spec = world.spec(
        "exec >out 2>&1
        head -c 4M /dev/zero >big; stat -c %s big
        head -c 4M /dev/zero >/tmp/big; stat -c %s /tmp/big; rm /tmp/big
        head -c 4M /dev/zero >/home/agent/big; df -B1 --output=size /home/agent | tail -1 | tr -d ' '
        cd /tmp; for i in $(seq 2000); do : >$i || break; done 2>/dev/null; ls | wc -l
        ulimit -c; ulimit -n",
    );
    spec.limits.file_bytes = 2 << 20;
    spec.limits.tmp_bytes = 1 << 20;
    spec.limits.open_files = 100;
    world.run(&spec).await;
    let out = fs::read_to_string(spec.workspace.join("out")).expect("out");
    let numbers: Vec<u64> = out.lines().filter_map(|line| line.parse().ok()).collect();
    let [file, tmp, home, inodes, core, open] = numbers[..] else { panic!("{out}") };
    assert_eq!((file, tmp, home, core, open), (2 << 20, 1 << 20, 1 << 20, 0, 100), "{out}");
    assert!((200..=256).contains(&inodes), "{out}");
    assert_eq!(fs::metadata(spec.workspace.join("big")).expect("big").len(), 2 << 20);
}
