//! SR-IOV: a physical function (PF), its virtual functions (VFs), and the token that those who use them share.
//!
//! All VFs that a PF can have are made with the machine, each with its StreamID and its group; enabling them is what
//! makes them be there. A VF is used by who knows its PF's token, a UUID: the PF's user, who can do the VFs harm, sets
//! it, and as long as one of them is used nobody takes the PF without it. As in Linux.

use std::sync::{Arc, OnceLock};

use iommu::Device as CoreDevice;
use parking_lot::{Mutex, RwLock};
use platform::{Port, Spawn};

use crate::device::{Bus, Device};
use crate::function::Parts;
use crate::group::Group;
use crate::{Error, Function};

/// A UUID: the bytes in the order of its text.
pub(crate) type Uuid = [u8; 16];

/// What follows a device's name in `VFIO_GROUP_GET_DEVICE_FD`, before a UUID.
const VF_TOKEN: &str = "vf_token=";
/// Where its text has dashes.
const DASHES: [usize; 4] = [8, 13, 18, 23];
const UUID_LEN: usize = 36;

/// What a function is to SR-IOV.
pub(crate) enum Role {
    /// A PF, once VFs were added to it.
    Physical(OnceLock<Physical>),
    Virtual(Virtual),
}

/// A PF and its VFs.
pub(crate) struct Physical {
    shared: Arc<Shared>,
    vfs: RwLock<Vec<Arc<Function>>>,
}

/// A VF.
pub(crate) struct Virtual {
    shared: Arc<Shared>,
    /// Numbered from 0.
    pub(crate) index: u16,
}

/// What a PF and its VFs know of each other.
struct Shared(Mutex<State>);

struct State {
    /// How many VFs are enabled.
    num_vfs: u16,
    /// Open files of VFs' own.
    files: usize,
    /// VFs that are in use.
    users: usize,
    token: Uuid,
}

impl Physical {
    fn new() -> Result<Self, Error> {
        // Nobody's, until the PF's user sets one.
        let mut token = Uuid::default();
        rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty())
            .map_err(Error::File)?;
        let state = State { num_vfs: 0, files: 0, users: 0, token };
        Ok(Self { shared: Arc::new(Shared(Mutex::new(state))), vfs: RwLock::default() })
    }
}

impl Function {
    /// Gives it one more virtual function, which is there once it is enabled: at the address
    /// [`PciAddress::virtual_function`](platform::PciAddress::virtual_function), and of a group that the IOMMU core knows as
    /// `device`, with `port` as its way to memory. `make` builds what is behind the registers, and `spawn` starts
    /// threads. All are alike; they have the vendor ID of this function, and no interrupt line.
    pub fn add_virtual(
        &self,
        device: Arc<CoreDevice>,
        port: Port,
        group: &Arc<Group>,
        spawn: &Spawn,
        make: impl FnOnce(Bus) -> Arc<dyn Device>,
    ) -> Result<Arc<Self>, Error> {
        let Role::Physical(physical) = &self.role else {
            return Err(Error::Invalid("a virtual function has no virtual functions"));
        };
        if physical.get().is_none() {
            // If another thread is faster, it is that one's.
            let _ = physical.set(Physical::new()?);
        }
        let Some(Physical { shared, vfs }) = physical.get() else { return Err(Error::NoDevice) };
        let mut vfs = vfs.write();
        let index = vfs.len() as u16;
        let no_room = Error::Range("the bus has no room for so many virtual functions");
        let address = self.address().virtual_function(index).ok_or(no_room)?;
        let role = Role::Virtual(Virtual { shared: shared.clone(), index });
        let its = self.its().clone();
        let parts = Parts { device, port, its, address, group, spawn, role };
        let vf = Self::assemble(parts, Some(self.identity().vendor), make)?;
        self.config().set_total_vfs(index + 1, vf.identity().device, vf.bars());
        vfs.push(vf.clone());
        Ok(vf)
    }

    fn physical(&self) -> Option<&Physical> {
        match &self.role {
            Role::Physical(physical) => physical.get(),
            Role::Virtual(_) => None,
        }
    }

    /// It is a virtual function.
    pub fn is_virtual(&self) -> bool {
        matches!(self.role, Role::Virtual(_))
    }

    /// Whether it is there: a virtual function that is not enabled is not.
    pub fn is_present(&self) -> bool {
        match &self.role {
            Role::Physical(_) => true,
            Role::Virtual(Virtual { shared, index }) => *index < shared.0.lock().num_vfs,
        }
    }

    /// Its virtual functions, whether enabled or not: `TotalVFs`.
    pub fn virtual_functions(&self) -> Vec<Arc<Self>> {
        self.physical().map(|physical| physical.vfs.read().clone()).unwrap_or_default()
    }

    /// How many of its virtual functions are enabled: `NumVFs`.
    pub fn num_vfs(&self) -> u16 {
        self.physical().map_or(0, |physical| physical.shared.0.lock().num_vfs)
    }

    /// Enables the first `count` of its virtual functions, or with 0 disables all. As in Linux they are disabled before
    /// another number is enabled.
    ///
    /// If a program has the file of a virtual function open, nothing is disabled: its request interrupt asks it to close
    /// the file. (Linux asks, too, and waits.)
    ///
    /// # Errors
    /// [`Error::Range`] beyond `TotalVFs`, [`Error::Busy`].
    pub fn set_num_vfs(&self, count: u16) -> Result<(), Error> {
        let vfs = self.virtual_functions();
        if usize::from(count) > vfs.len() {
            return Err(Error::Range("there are not so many virtual functions"));
        }
        let Some(Physical { shared, .. }) = self.physical() else { return Ok(()) };
        let enabled = {
            let mut state = shared.0.lock();
            let old = state.num_vfs;
            if old == count {
                return Ok(());
            }
            if count > 0 && old > 0 {
                return Err(Error::Busy("virtual functions are enabled: disable them first"));
            }
            if state.files == 0 && state.users == 0 {
                state.num_vfs = count;
                self.config().set_num_vfs(count);
                return Ok(());
            }
            usize::from(old)
        };
        vfs[..enabled].iter().for_each(|vf| vf.interrupts().trigger_request());
        Err(Error::Busy("a virtual function is open"))
    }

    /// A reset of a physical function is one of its virtual functions.
    pub(crate) fn reset_virtual(&self) {
        let enabled = usize::from(self.num_vfs());
        self.virtual_functions().iter().take(enabled).for_each(|vf| vf.reset());
    }

    /// Its slot can be reset: it is alone there, and no virtual function goes with it.
    pub(crate) fn has_slot(&self) -> bool {
        !self.is_virtual() && self.num_vfs() == 0
    }

    /// Whether who shows this token, or none, may use it. Shown for a physical function whose virtual functions nobody
    /// uses, it is the token from now on.
    pub(crate) fn match_token(&self, token: Option<Uuid>) -> Result<(), Error> {
        let (is_physical, shared) = match &self.role {
            Role::Virtual(Virtual { shared, .. }) => (false, shared),
            Role::Physical(physical) => match (physical.get(), token) {
                (Some(physical), _) => (true, &physical.shared),
                (None, None) => return Ok(()),
                (None, Some(_)) => return Err(Error::Invalid("the device has no VF token")),
            },
        };
        let mut state = shared.0.lock();
        match token {
            token if is_physical && state.users == 0 => {
                state.token = token.unwrap_or(state.token);
                Ok(())
            }
            Some(token) if token == state.token => Ok(()),
            Some(_) => Err(Error::Access("it is not the VF token")),
            None => Err(Error::Access("the device takes a VF token")),
        }
    }

    /// Sets the token that users of its virtual functions have to show from now on. It cannot be read, because it may be
    /// the one of the user before.
    pub(crate) fn set_token(&self, token: Uuid) {
        if let Some(physical) = self.physical() {
            physical.shared.0.lock().token = token;
        }
    }

    /// It has a token.
    pub(crate) fn has_token(&self) -> bool {
        self.physical().is_some()
    }
}

/// The function's own file is open: while one of a virtual function is, it stays enabled.
pub(crate) struct OpenFunction(Option<Arc<Shared>>);

impl OpenFunction {
    /// # Errors
    /// [`Error::NoDevice`]: it is not enabled.
    pub(crate) fn new(function: &Function) -> Result<Self, Error> {
        count(function, |state| state.files += 1).map(Self)
    }
}

impl Drop for OpenFunction {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.0.lock().files -= 1;
        }
    }
}

/// A function is in use: while a virtual one is, it stays enabled, and its physical function is for who knows the token.
pub(crate) struct User(Option<Arc<Shared>>);

impl User {
    /// # Errors
    /// [`Error::NoDevice`]: it is not enabled.
    pub(crate) fn new(function: &Function) -> Result<Self, Error> {
        count(function, |state| state.users += 1).map(Self)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.0.lock().users -= 1;
        }
    }
}

/// Counts something of a virtual function that is enabled.
fn count(function: &Function, what: impl FnOnce(&mut State)) -> Result<Option<Arc<Shared>>, Error> {
    let Role::Virtual(Virtual { shared, index }) = &function.role else { return Ok(None) };
    let mut state = shared.0.lock();
    if *index >= state.num_vfs {
        return Err(Error::NoDevice);
    }
    what(&mut state);
    Ok(Some(shared.clone()))
}

/// What follows a device's name: spaces, and one token between them or none.
pub(crate) fn parse_options(options: &str) -> Result<Option<Uuid>, Error> {
    let mut words = options.split(' ').filter(|word| !word.is_empty());
    let Some(word) = words.next() else { return Ok(None) };
    let token = word.strip_prefix(VF_TOKEN).ok_or(Error::Invalid("the device's options"))?;
    match words.next() {
        None => parse_uuid(token).map(Some).ok_or(Error::Invalid("the VF token is no UUID")),
        Some(_) => Err(Error::Invalid("the device's options")),
    }
}

/// `52ac9bff-3a88-4fbd-901a-0d767c3b6c97`.
fn parse_uuid(text: &str) -> Option<Uuid> {
    let text = text.as_bytes();
    if text.len() != UUID_LEN || DASHES.iter().any(|at| text[*at] != b'-') {
        return None;
    }
    let digits = (0..UUID_LEN).filter(|at| !DASHES.contains(at));
    let digits: Option<Vec<_>> = digits.map(|at| char::from(text[at]).to_digit(16)).collect();
    let mut uuid = Uuid::default();
    for (byte, pair) in uuid.iter_mut().zip(digits?.as_chunks::<2>().0) {
        *byte = (pair[0] << 4 | pair[1]) as u8;
    }
    Some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_uuid_behind_spaces() {
        let uuid = "52ac9bff-3A88-4fbd-901a-0d767c3b6c97";
        let bytes = [0x52, 0xac, 0x9b, 0xff, 0x3a, 0x88, 0x4f, 0xbd];
        let token = parse_options(&format!("  vf_token={uuid} ")).unwrap().unwrap();
        assert_eq!((&token[..8], token[15]), (bytes.as_slice(), 0x97));
        assert_eq!(parse_options(""), Ok(None));
        assert_eq!(parse_options("  "), Ok(None));
        for wrong in [
            uuid.to_owned(),
            "vf_token=".to_owned(),
            format!("vf_token={}", &uuid[1..]),
            format!("vf_token={uuid}0"),
            format!("vf_token={}", uuid.replace('-', "0")),
            format!("vf_token={}", uuid.replace('f', "+")),
            format!("vf_token={uuid} vf_token={uuid}"),
            format!("vf_token={uuid} more"),
        ] {
            assert!(matches!(parse_options(&wrong), Err(Error::Invalid(_))), "{wrong}");
        }
    }
}
