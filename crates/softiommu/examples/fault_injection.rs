//! How code that uses `/dev/iommu` is tested for what it does when a step fails: each step of the kernel's, in turn, as
//! `fail_nth` of the kernel's own tests has it.
//!
//! `cargo run -p softiommu --example fault_injection`

use std::error::Error;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use iommufd_ioctls::{IommuFd, IommufdIoas};

/// The knob of the calling thread: how many steps it takes to a failure.
const KNOB: &str = "/proc/thread-self/fail-nth";
const IOVA: u64 = 0x10_0000;
const LEN: u64 = 0x10_0000;

/// The code under test: maps memory, and takes it back.
fn map_and_unmap(memory: &File) -> Result<(), Box<dyn Error>> {
    let iommu = Arc::new(IommuFd::new()?);
    let ioas = IommufdIoas::new(iommu)?;
    ioas.map_file(memory.as_raw_fd(), 0, LEN, IOVA, true)?;
    ioas.unmap(IOVA, LEN)?;
    Ok(())
}

/// Lets each step fail once.
pub fn main() -> Result<(), Box<dyn Error>> {
    let machine = softiommu::Machine {
        fault_injection: true,
        ..softiommu::Machine::with(softiommu::Model::Mock)
    };
    softiommu::install(machine)?;
    // SAFETY: a plain system call; the descriptor is ours.
    let memory = unsafe { File::from_raw_fd(libc::memfd_create(c"memory".as_ptr(), 0)) };
    memory.set_len(LEN)?;
    for nth in 1.. {
        fs::write(KNOB, nth.to_string())?;
        let result = map_and_unmap(&memory);
        // What is left of the count: 0 if there was an nth step, which has failed.
        let left = fs::read_to_string(KNOB)?;
        fs::write(KNOB, "0")?;
        if left.trim() != "0" {
            println!("all of its {} steps have failed once", nth - 1);
            return result;
        }
        match result {
            Err(error) => println!("step {nth} fails: {error}"),
            Ok(()) => println!("step {nth} fails: nobody notices"),
        }
        // And without a failure it works again.
        map_and_unmap(&memory)?;
    }
    Ok(())
}
