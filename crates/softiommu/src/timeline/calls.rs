//! Ioctls, on the tracks of the threads that make them.

use std::sync::Arc;
use std::time::Instant;

use host::{Errno, Task};
use interpose::{Ended, Ioctl};
use rustix::fs::{Mode, OFlags, open};
use trace::{Args, Track};
use uapi::layout::{self, Struct};
use uapi::nr;

use super::{Era, Timeline};

impl Timeline {
    /// An ioctl begins; the result is told when it is over.
    pub(crate) fn ioctl<'a>(&'a self, ioctl: &Ioctl<'a>) -> Ended<'a> {
        let Ioctl { file, process, thread, task, command, arg } = *ioctl;
        let name = name_on(file, command);
        let known = name.and_then(layout::of);
        let before = known.map(|known| read(known, task, arg));
        let started = Instant::now();
        Box::new(move |result| {
            let mut args = Args::new().text("file", file);
            match (known, before) {
                (Some(known), Some(before)) => {
                    args = fields(args, known, &before, &read(known, task, arg), result.is_ok());
                }
                _ => args = args.hex("arg", arg),
            }
            args = match result {
                Ok(0) => args,
                Ok(result) => args.int("result", result.into()),
                Err(errno) => refused(args, errno),
            };
            let unknown = format!("ioctl {command:#x}");
            let name = name.unwrap_or(&unknown);
            self.tell(|era| {
                let track = era.thread(process, thread);
                era.trace.slice(&track, "ioctl", name, started, &args);
            });
        })
    }
}

impl Era {
    fn thread(&self, process: u32, thread: u32) -> Arc<Track> {
        self.threads.get(&(process, thread), || {
            let names = [process, thread].map(|task| name_of(process, task));
            self.trace.thread(process, &names[0], thread, &names[1])
        })
    }
}

/// What a command is called on a file of this name: devices and groups share numbers with `/dev/iommu`.
fn name_on(file: &str, command: u32) -> Option<&'static str> {
    match file {
        "/dev/iommu" | "/dev/vfio/vfio" => nr::name(command),
        "anon_inode:[vfio-device]" => nr::device_name(command),
        _ if file.starts_with("/dev/vfio/devices/") || file.starts_with("/dev/char/") => {
            nr::device_name(command)
        }
        _ if file.starts_with("/dev/vfio/") => nr::group_name(command),
        _ => nr::name(command),
    }
}

/// What a result that is an error looks like.
pub(super) fn refused(args: Args, errno: Errno) -> Args {
    let error = std::io::Error::from(errno).to_string();
    args.int("errno", errno.raw_os_error().into()).text("error", &error)
}

/// The struct of a call, as much of it as the caller has.
fn read(known: &Struct, task: &dyn Task, arg: u64) -> Vec<u8> {
    let mut bytes = vec![0; known.size];
    let copy = |bytes: &mut [u8]| task.mm().copy_from_user(arg, bytes).is_ok();
    // Each begins with its size.
    let Some(size) = bytes.first_chunk_mut::<4>().filter(|_| known.size > 4) else { return bytes };
    if !copy(size) {
        return Vec::new();
    }
    let size = (u32::from_le_bytes(*size) as usize).min(known.size);
    bytes.truncate(size);
    if !copy(&mut bytes) {
        bytes.clear();
    }
    bytes
}

/// The fields as the caller gave them, then those that the answer changed or is.
fn fields(mut args: Args, known: &Struct, before: &[u8], after: &[u8], done: bool) -> Args {
    // The first is the size.
    let (before, after) = (known.values(before).skip(1), known.values(after).skip(1));
    let (mut given, mut answered) = (Vec::new(), Vec::new());
    for ((name, size, old), (_, _, new)) in before.zip(after) {
        let is_answer = name.starts_with("out_");
        if !is_answer {
            given.push((name.to_owned(), size, old));
        }
        if new != old || is_answer && done {
            let name = if is_answer { name.to_owned() } else { format!("out_{name}") };
            answered.push((name, size, new));
        }
    }
    for (name, size, value) in given.iter().chain(&answered) {
        let hex = *size == 8 || name.ends_with("flags");
        args = match value {
            _ if hex => args.hex(name, *value),
            // A descriptor may be negative, ids and counts are not.
            _ if name.ends_with("fd") => args.int(name, (*value as i32).into()),
            _ => args.int(name, *value as i64),
        };
    }
    args
}

/// What the kernel calls a thread of a process; its number if it does not say.
pub(super) fn name_of(process: u32, thread: u32) -> String {
    let path = format!("/proc/{process}/task/{thread}/comm");
    let mut name = [0; 64];
    // Past what the program's own calls go through.
    let read = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|file| rustix::io::read(&file, &mut name));
    match read {
        Ok(len) => String::from_utf8_lossy(&name[..len]).trim_end().to_owned(),
        Err(_) => thread.to_string(),
    }
}
