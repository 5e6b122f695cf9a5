//! The probes of docs/security.md on what a run can reach outside itself: its neighbours, the host, the network.

use std::io::Read as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use crate::containment::{output, python, unguarded};
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};

/// Leaves a mark in every place that two sandboxes could share, and looks for the other's.
fn neighbour(own: &str, other: &str) -> String {
    python(&format!(
        "
import os, socket, subprocess, sys, time
own, other = '{own}', '{other}'
for folder in ['/workspace', '/tmp', os.environ['HOME']]:
    open(folder + '/' + own, 'w').write(own)
held = socket.socket(socket.AF_UNIX); held.bind('\\0' + own); held.listen()
port = socket.socket(); port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); port.bind(('127.0.0.1', 4711)); port.listen()
child = subprocess.Popen(['sleep', '900'], env={{'MARK': own}})
print('planted', own, flush=True)
time.sleep(6)
found = []
for top, folders, files in os.walk('/'):
    if top.startswith(('/proc', '/sys')): folders.clear(); continue
    found += [os.path.join(top, name) for name in files if name == other]
for pid in filter(str.isdigit, os.listdir('/proc')):
    for name in ['environ', 'cmdline']:
        try:
            if other.encode() in open('/proc/' + pid + '/' + name, 'rb').read() and int(pid) not in (os.getpid(), os.getppid()): found.append('process ' + pid)
        except OSError: pass
try: socket.socket(socket.AF_UNIX).connect('\\0' + other); found.append('abstract socket')
except OSError: pass
if other in open('/proc/net/unix').read(): found.append('unix')
listeners = [line for line in open('/proc/net/tcp').read().splitlines()[1:] if line.split()[3] == '0A']
if len(listeners) != 1: found.append('listeners ' + str(listeners))
child.kill()
print('found', found, flush=True)
"
    ))
}

#[tokio::test]
async fn probe_38_two_runs_see_nothing_of_each_other() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let first = shell(&format!("{}\necho x >x", neighbour("needle-one", "needle-two")));
    let second = shell(&format!("{}\necho x >x", neighbour("needle-two", "needle-one")));
    let (first, second) = (kage.submit(&first).await, kage.submit(&second).await);
    let ids = [string(&first["id"]), string(&second["id"])];
    kage.says(ids[0], "shell", "planted").await;
    kage.says(ids[1], "shell", "planted").await;
    // Both live now: each looks a few seconds after it has left its mark.
    for (id, own, other) in [(ids[0], "needle-one", "needle-two"), (ids[1], "needle-two", "needle-one")] {
        let done = kage.ended(id).await;
        assert_eq!(done["runs"][0]["state"], "succeeded", "{done:#}");
        let log = kage.get(&format!("/api/v1/tasks/{id}/runs/shell/log")).await.text();
        assert_eq!(log, format!("planted {own}\nfound []\n"));
        // What is told of one run has nothing of the other.
        let events = kage.events(id, "").await;
        let told: Vec<&Value> =
            events.iter().map(|event| &event.data).filter(|data| data.get("stream").is_some()).collect();
        assert!(
            !told.is_empty()
                && told.iter().all(|data| !data.to_string().contains(&format!("planted {other}")))
        );
    }
    let overlap: bool =
        sqlx::query_scalar("SELECT (SELECT max(started_at) FROM runs) < (SELECT min(finished_at) FROM runs)")
            .fetch_one(kage.pool())
            .await
            .expect("two runs");
    assert!(overlap, "they did not run at the same time");
}

/// Tries everything that could leave; prints one line for each that is not refused as it must be.
fn network(port: u16) -> String {
    format!(
        "
import socket, errno, os
names = [name for _, name in socket.if_nameindex()] if hasattr(socket, 'if_nameindex') else []
print('interfaces', sorted(line.split(':')[0].strip() for line in open('/proc/net/dev').read().splitlines()[2:]))
print('routes', len(open('/proc/net/route').read().splitlines()[1:]))
gone = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EHOSTUNREACH)
for to in ['1.1.1.1', '8.8.8.8', '169.254.169.254', '172.17.0.1', '10.0.0.1', '192.168.0.1', '255.255.255.255', '224.0.0.1']:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        s = socket.socket(socket.AF_INET, kind); s.settimeout(2)
        try:
            s.connect((to, {port})); s.send(b'x'); print('sent', to, kind)
        except OSError as error:
            if error.errno not in gone + (errno.EACCES,): print('not unreachable', to, kind, error)
for to in ['2606:4700::1111', 'fe80::1%lo', 'fd00:ec2::254', 'ff02::1%lo']:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            s = socket.socket(socket.AF_INET6, kind); s.settimeout(2)
            s.connect((to.split('%')[0], {port}, 0, 1)); s.send(b'x'); print('sent', to, kind)
        except OSError as error:
            if error.errno not in gone + (errno.EINVAL, errno.EPERM): print('not unreachable', to, kind, error)
for to, family in [('127.0.0.1', socket.AF_INET), ('127.0.0.53', socket.AF_INET), ('::1', socket.AF_INET6)]:
    try:
        s = socket.socket(family); s.settimeout(2); s.connect((to, {port})); s.send(b'x'); print('sent', to)
    except OSError as error:
        if error.errno not in gone + (errno.ECONNREFUSED,): print('not refused', to, error)
for family, kind, protocol in [(socket.AF_INET, socket.SOCK_RAW, 1), (socket.AF_INET, socket.SOCK_DGRAM, 1), (17, socket.SOCK_RAW, 0), (40, socket.SOCK_STREAM, 0)]:
    try: socket.socket(family, kind, protocol); print('opened', family, kind)
    except OSError: pass
for name in ['example.com', 'host.docker.internal', 'gateway.docker.internal', 'metadata.google.internal']:
    try: print('resolved', name, socket.getaddrinfo(name, 80))
    except OSError: pass
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_41_nothing_leaves() {
    // A service of the host's on every address: it must never hear of a run.
    let listener = TcpListener::bind("0.0.0.0:0").expect("binds");
    let port = listener.local_addr().expect("an address").port();
    let heard = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&heard);
    std::thread::spawn(move || {
        for mut one in listener.incoming().flatten() {
            counter.fetch_add(1, Ordering::SeqCst);
            let _ = one.read(&mut [0; 1]);
        }
    });
    let program = network(port);
    let open = unguarded(&program);
    assert!(open.contains("sent 127.0.0.1") && open.contains("opened"), "{open}");
    eventually("the host's service hears it", async || (heard.load(Ordering::SeqCst) > 0).then_some(()))
        .await;
    let before = heard.load(Ordering::SeqCst);

    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let seen = output(&kage, &python(&program)).await;
    assert_eq!(seen, "interfaces ['lo']\nroutes 0\n");
    assert_eq!(heard.load(Ordering::SeqCst), before);
}
