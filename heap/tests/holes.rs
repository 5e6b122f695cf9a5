//! What a process keeps of large blocks that it has given back, with small ones between them that it still holds.
#![cfg(target_env = "gnu")]

use std::process::Command;

const MIB: usize = 1 << 20;
const BLOCKS: usize = 48;

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("a field");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("a number") * 1024
}

/// Bytes that are kept, in a process of its own: what the library has learned is not unlearned.
fn kept(how: &str) -> usize {
    let this = std::env::current_exe().expect("a path");
    let mut command = Command::new(this);
    command.args(["--ignored", "--exact", "child", "--nocapture"]).env("HOW", how);
    let output = command.output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    let told = text.lines().find_map(|line| line.split_once("kept ")?.1.trim().parse().ok());
    told.unwrap_or_else(|| panic!("{text}"))
}

#[test]
#[ignore = "a part of the test below"]
fn child() {
    if std::env::var("HOW").is_ok_and(|how| how == "bounded") {
        assert!(kage_heap::bound());
    }
    // From this glibc learns that blocks up to its size are usual.
    drop(std::hint::black_box(vec![1_u8; 20 * MIB]));
    let before = resident();
    let mut small = Vec::new();
    let large: Vec<Vec<u8>> = (0..BLOCKS)
        .map(|_| {
            let block = std::hint::black_box(vec![1_u8; MIB]);
            small.push(std::hint::black_box(vec![1_u8; 2000]));
            block
        })
        .collect();
    drop(large);
    println!("kept {}", resident().saturating_sub(before));
    drop(small);
}

#[test]
fn what_is_large_is_given_back() {
    let (left_alone, bounded) = (kept("left alone"), kept("bounded"));
    assert!(
        left_alone > BLOCKS / 2 * MIB,
        "it keeps no more than {left_alone} bytes by itself: this is not needed any more"
    );
    assert!(bounded < 4 * MIB, "{bounded} bytes");
}
