//! Calls to the process that serves a file: the side that asks.
//!
//! Each call has a socket pair of its own, one end of which travels to the
//! server through the file's descriptor. So calls of many threads and processes
//! never mix, and one that dies in the middle leaves nothing behind.

use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use host::{Errno, MappedMemory, MmapBacking, MmapRequest};
use host_linux::PrivateFd;
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt::socket_peercred};

use crate::calls::Identity;
use crate::open::Look;
use crate::process::{close, current};
use crate::sys::syscall6;
use crate::wire::{Message, Tag, receive, send, send_bytes};

/// Nobody serves the file any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

impl From<Gone> for Errno {
    fn from(_: Gone) -> Self {
        Self::NODEV
    }
}

/// An answer, its descriptor if it has one, and the call's socket.
struct Answer {
    message: Message,
    fd: Option<OwnedFd>,
    socket: OwnedFd,
}

/// Calls the server at the other end of `route`, and does for it meanwhile what
/// only this process can do.
fn call(route: RawFd, request: &Message) -> Result<Answer, Gone> {
    // SAFETY: a descriptor of this process, open during the call.
    let route = unsafe { BorrowedFd::borrow_raw(route) };
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (socket, theirs) = pair.map_err(|_| Gone)?;
    permit_access(route);
    // A reader's end goes along: the server empties it when nothing is left to read.
    send_bytes(route, &[0], &[theirs.as_fd(), route]).map_err(|_| Gone)?;
    drop(theirs);
    send(&socket, request, &[]).map_err(|_| Gone)?;
    loop {
        let (message, mut fds) = receive(&socket).ok_or(Gone)?;
        let number = match message.tag {
            Tag::Install => match fds.pop().ok_or(Gone).map(|fd| accept(fd, message.words[0] != 0))
            {
                Ok(Ok(fd)) => i64::from(fd),
                Ok(Err(e)) => -i64::from(e.raw_os_error()),
                // The kernel drops descriptors that find no room.
                Err(Gone) => -i64::from(Errno::MFILE.raw_os_error()),
            },
            Tag::Uninstall => i64::from(close(message.words[0] as RawFd)),
            _ => {
                return Ok(Answer { message, fd: fds.pop(), socket });
            }
        };
        let number = Message::new(Tag::Number, &[number as u64]);
        send(&socket, &number, &[]).map_err(|_| Gone)?;
    }
}

/// Lets the server read and write our memory where the Yama security module
/// would otherwise forbid a parent to.
fn permit_access(route: BorrowedFd<'_>) {
    static PERMITTED: AtomicU32 = AtomicU32::new(0);
    const PR_SET_PTRACER: usize = 0x5961_6d61;
    let Ok(server) = socket_peercred(route) else {
        return;
    };
    let server = server.pid.as_raw_nonzero().get() as u32;
    if PERMITTED.swap(server, Ordering::Relaxed) != server {
        let args = [PR_SET_PTRACER, server as usize, 0, 0, 0, 0];
        // SAFETY: takes numbers; without Yama it fails, and is not needed.
        unsafe { syscall6(libc::SYS_prctl, args) };
    }
}

/// Makes a received descriptor the program's.
fn accept(fd: OwnedFd, cloexec: bool) -> Result<RawFd, Errno> {
    if !cloexec {
        rustix::io::fcntl_setfd(&fd, FdFlags::empty())?;
    }
    let fd = fd.into_raw_fd();
    current().adopt(fd);
    Ok(fd)
}

/// The number that an answer carries.
fn number(answer: &Answer) -> Result<u64, Errno> {
    match answer.message.tag {
        Tag::Done => Ok(answer.message.words[0]),
        Tag::Failed => Err(Errno::from_raw_os_error(answer.message.words[0] as i32)),
        _ => Err(Errno::NODEV),
    }
}

fn tid() -> u64 {
    rustix::thread::gettid().as_raw_nonzero().get() as u64
}

pub(crate) fn ioctl(fd: RawFd, cmd: u32, arg: u64) -> Result<i32, Errno> {
    let request = Message::new(Tag::Ioctl, &[tid(), u64::from(cmd), arg]);
    Ok(number(&call(fd, &request)?)? as i32)
}

/// `tag` is [`Tag::Read`] or [`Tag::Write`].
pub(crate) fn transfer(
    tag: Tag,
    fd: RawFd,
    buf: u64,
    len: usize,
    pos: Option<u64>,
) -> Result<usize, Errno> {
    let words = [tid(), buf, len as u64, u64::from(pos.is_some()), pos.unwrap_or(0)];
    Ok(number(&call(fd, &Message::new(tag, &words))?)? as usize)
}

pub(crate) fn identity(fd: RawFd) -> Result<Identity, Errno> {
    let answer = call(fd, &Message::new(Tag::Identity, &[tid()]))?;
    number(&answer)?;
    let [_, is_device, major, minor, ..] = answer.message.words;
    Ok(Identity {
        device: (is_device != 0).then_some((major as u32, minor as u32)),
        name: String::from_utf8_lossy(&answer.message.text).into_owned(),
    })
}

pub(crate) fn mmap(fd: RawFd, request: MmapRequest) -> Result<MmapBacking, Errno> {
    let bits = [request.read, request.write, request.exec, request.shared];
    let bits = bits.iter().rev().fold(0, |all, &bit| all << 1 | u64::from(bit));
    let request = Message::new(Tag::Mmap, &[tid(), request.offset, request.len, bits]);
    let answer = call(fd, &request)?;
    let offset = number(&answer)?;
    let memory = match answer.fd {
        Some(fd) => MappedMemory::File { fd, offset },
        None => MappedMemory::Registers,
    };
    // The server keeps its guard until this end of the call closes.
    let socket = PrivateFd::new(answer.socket).map_err(|_| Errno::MFILE)?;
    let guard: Box<dyn Any + Send + Sync> = Box::new(socket);
    Ok(MmapBacking { memory, guard })
}

/// Opens a path of the server's; `Ok(None)` if it is the kernel's after all.
pub(crate) fn open(
    route: RawFd,
    path: &str,
    flags: i32,
) -> Result<Option<Result<RawFd, Errno>>, Gone> {
    let request = Message::with_text(Tag::Open, &[tid(), flags as u64], path);
    let answer = call(route, &request)?;
    Ok(match (number(&answer), answer.fd) {
        _ if answer.message.tag == Tag::NotOurs => None,
        (Err(e), _) => Some(Err(e)),
        (Ok(_), Some(fd)) => Some(accept(fd, flags & libc::O_CLOEXEC != 0)),
        (Ok(_), None) => Some(Err(Errno::MFILE)),
    })
}

/// Looks at a path of the server's.
pub(crate) fn look(route: RawFd, path: &str) -> Result<Option<Result<Look, Errno>>, Gone> {
    let answer = call(route, &Message::with_text(Tag::Look, &[tid()], path))?;
    let [_, is_device, a, b, ..] = answer.message.words;
    Ok(match number(&answer) {
        _ if answer.message.tag == Tag::NotOurs => None,
        Err(e) => Some(Err(e)),
        Ok(_) if is_device != 0 => Some(Ok(Look::Device(a as u32, b as u32))),
        Ok(_) => Some(Ok(Look::Text(a))),
    })
}
