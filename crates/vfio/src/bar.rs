//! BARs in the physical address space: what the DMA of other devices reaches.

use std::sync::{Arc, Weak};

use host::PhysRun;
use iommufd::DmaBuf;
use parking_lot::Mutex;
use platform::{Port, Registers};

use crate::Function;

/// Where the BARs of a function are, and who maps them for DMA.
pub(crate) struct Bars {
    sizes: [u64; 6],
    addresses: [u64; 6],
    /// Held here, found from there.
    _registers: Vec<Arc<Bar>>,
    exports: Mutex<Vec<Weak<DmaBuf>>>,
    /// Whether they are revoked is looked up and carried out by one at a time.
    turn: Mutex<()>,
}

/// A BAR whose registers answer.
struct Bar {
    function: Weak<Function>,
    index: u32,
}

impl Bars {
    /// Gives the BARs of a function a place: those for which `answers` also to the DMA of devices. `None`: there is no room.
    pub(crate) fn place(
        function: &Weak<Function>,
        port: &Port,
        sizes: [u64; 6],
        answers: impl Fn(u32) -> bool,
    ) -> Option<Self> {
        let (mut addresses, mut registers) = ([0; 6], Vec::new());
        for (index, size) in (0..).zip(sizes).filter(|(_, size)| *size > 0) {
            let bar = Arc::new(Bar { function: function.clone(), index });
            let found: Arc<dyn Registers> = bar.clone();
            addresses[index as usize] = port.place(size, Arc::downgrade(&found))?;
            registers.extend(answers(index).then_some(bar));
        }
        let (exports, turn) = Default::default();
        Some(Self { sizes, addresses, _registers: registers, exports, turn })
    }

    /// The size of each in bytes; 0 is none.
    pub(crate) fn sizes(&self) -> [u64; 6] {
        self.sizes
    }

    /// The physical address of each; 0 where there is none.
    pub(crate) fn addresses(&self) -> [u64; 6] {
        self.addresses
    }

    /// Where a part of one is; `None` if it is not inside.
    pub(crate) fn run(&self, index: u32, offset: u64, len: u64) -> Option<PhysRun> {
        let index = index as usize;
        let inside = offset.checked_add(len)? <= *self.sizes.get(index)?;
        inside.then(|| PhysRun { pa: self.addresses[index] + offset, len })
    }

    /// A part of one, or several that are apart, for IOASes to map until it is taken away.
    pub(crate) fn export(&self, run: Option<PhysRun>) -> Arc<DmaBuf> {
        let export = DmaBuf::new(run, Box::new(()));
        let mut exports = self.exports.lock();
        exports.retain(|export| export.strong_count() > 0);
        exports.push(Arc::downgrade(&export));
        export
    }

    /// Takes away what was exported, from whoever maps it, or lets it be mapped anew; what `revoked` says when it is the
    /// caller's turn.
    pub(crate) fn revoke(&self, revoked: impl FnOnce() -> bool) {
        let _turn = self.turn.lock();
        let revoked = revoked();
        let exports = self.exports.lock().clone();
        for export in exports.iter().filter_map(Weak::upgrade) {
            if export.is_revoked() != revoked {
                export.set_revoked(revoked);
            }
        }
    }

    /// Takes it away for good.
    pub(crate) fn forget(&self) {
        self.revoke(|| true);
        self.exports.lock().clear();
    }
}

impl Registers for Bar {
    fn read(&self, offset: u64, data: &mut [u8]) -> bool {
        let function = self.function.upgrade();
        function.is_some_and(|function| function.read(self.index, offset, data).is_ok())
    }

    fn write(&self, offset: u64, data: &[u8]) -> bool {
        let function = self.function.upgrade();
        function.is_some_and(|function| function.write(self.index, offset, data).is_ok())
    }
}
