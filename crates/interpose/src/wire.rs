//! Messages between a process that uses an emulated file and the one that
//! serves it.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use host::{Errno, fail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Tag {
    // Calls, from the user.
    Ioctl = 1,
    Read,
    Write,
    Mmap,
    Identity,
    Open,
    Look,
    // Answers, from the server.
    Done,
    Failed,
    /// The path is the kernel's.
    NotOurs,
    /// "Take this descriptor and tell me its number."
    Install,
    /// "Close that one again."
    Uninstall,
    // The user's answer to these two.
    Number,
}

const TAGS: [Tag; 13] = [
    Tag::Ioctl,
    Tag::Read,
    Tag::Write,
    Tag::Mmap,
    Tag::Identity,
    Tag::Open,
    Tag::Look,
    Tag::Done,
    Tag::Failed,
    Tag::NotOurs,
    Tag::Install,
    Tag::Uninstall,
    Tag::Number,
];

const WORDS: usize = 6;
/// The word for the injected failure; the others are the message's own.
const FAIL_NTH: usize = 5;
const MAX_TEXT: usize = 4096;

/// A message without its descriptors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) tag: Tag,
    pub(crate) words: [u64; WORDS],
    pub(crate) text: Vec<u8>,
}

impl Message {
    pub(crate) fn new(tag: Tag, words: &[u64]) -> Self {
        let mut all = [0; WORDS];
        all[..words.len()].copy_from_slice(words);
        Self { tag, words: all, text: Vec::new() }
    }

    pub(crate) fn with_text(tag: Tag, words: &[u64], text: &str) -> Self {
        let text = text.as_bytes()[..text.len().min(MAX_TEXT)].to_vec();
        Self { text, ..Self::new(tag, words) }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = (self.tag as u64).to_le_bytes().to_vec();
        bytes.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(&self.text);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, text) = bytes.split_at_checked(8 * (1 + WORDS))?;
        let mut words =
            head.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes));
        let tag = words.next()?;
        let tag = TAGS.into_iter().find(|&known| known as u64 == tag)?;
        let mut message = Self::new(tag, &[]);
        message.words.iter_mut().zip(words).for_each(|(to, word)| *to = word);
        message.text = text.to_vec();
        Some(message)
    }
}

/// Sends `message` with `fds`. The sending thread's injected failure goes along:
/// whoever acts for it goes on counting.
pub(crate) fn send(
    socket: impl AsFd,
    message: &Message,
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let mut message = message.clone();
    message.words[FAIL_NTH] = u64::from(fail::nth());
    send_bytes(socket, &message.encode(), fds)
}

/// Sends one packet of `bytes` with at most two descriptors.
pub(crate) fn send_bytes(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Receives a message; `None` when the other side is gone or talks nonsense.
pub(crate) fn receive(socket: impl AsFd) -> Option<(Message, Vec<OwnedFd>)> {
    let mut bytes = [0; 8 * (1 + WORDS) + MAX_TEXT];
    let (len, fds) = receive_bytes(socket, &mut bytes, RecvFlags::empty()).ok()?;
    let message = Message::decode(&bytes[..len])?;
    fail::set_nth(message.words[FAIL_NTH] as u32);
    Some((message, fds))
}

/// Receives one packet; 0 bytes at the end.
pub(crate) fn receive_bytes(
    socket: impl AsFd,
    bytes: &mut [u8],
    flags: RecvFlags,
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        match recvmsg(&socket, &mut [IoSliceMut::new(bytes)], &mut control, flags) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok((received.bytes, rights.flatten().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_come_back_as_they_were(
            tag in prop::sample::select(&TAGS[..]), words: [u64; WORDS], text in "[a-z/]{0,200}"
        ) {
            let message = Message::with_text(tag, &words, &text);
            prop_assert_eq!(Message::decode(&message.encode()), Some(message));
        }

        #[test]
        fn nonsense_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Some(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
