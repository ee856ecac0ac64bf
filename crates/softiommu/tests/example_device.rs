//! The example works.
#![allow(unreachable_pub, reason = "it is a program of its own")]

#[path = "../examples/adding_a_device.rs"]
mod example;

#[test]
fn a_device_of_one_s_own_is_driven() {
    example::main().unwrap();
}

#[test]
fn a_device_needs_a_place() {
    let setup = softiommu::Setup::new(softiommu::Machine::default());
    let error = setup.device("counter", example::Counter::on).install();
    assert_eq!(error, Err(softiommu::SetupError::NoPlace("counter".to_owned())));
}
