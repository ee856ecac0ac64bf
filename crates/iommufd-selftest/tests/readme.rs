//! The README's table of ioctls says what is true.

mod common;

use common::Client;
use host::{Errno, File};
use uapi::nr;

const README: &str = include_str!("../../../README.md");

/// The state that the README gives an ioctl.
fn state(name: &str) -> &'static str {
    let row = README.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
    let row = row.unwrap_or_else(|| panic!("the README does not list {name}"));
    row.split('|').nth(2).unwrap_or_default().trim()
}

#[test]
fn every_ioctl_is_listed_and_answered() {
    let client = Client::new();
    for &(name, command) in nr::COMMANDS {
        let answer = client.context.ioctl(&client.task, command, 0);
        let known = answer != Err(Errno::NOTTY);
        match state(name) {
            "works" => assert!(known, "{name} is said to work but is unknown"),
            "partial" => assert!(known, "{name} is said to be partial but is unknown"),
            "missing" => assert!(!known, "{name} is said to be missing but is answered"),
            other => panic!("the README says `{other}` of {name}"),
        }
    }
}
