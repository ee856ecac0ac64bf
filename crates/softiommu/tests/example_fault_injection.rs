//! The example works.
#![allow(unreachable_pub, reason = "it is a program of its own")]

#[path = "../examples/fault_injection.rs"]
mod example;

#[test]
fn every_step_fails_once() {
    example::main().unwrap();
}
