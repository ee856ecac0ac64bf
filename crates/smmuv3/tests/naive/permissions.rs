//! Direct permissions of both stages: `AArch64.S1DirectBasePermissions()`,
//! `AArch64.S2DirectBasePermissions()`.

use super::bit;

/// A stage 1 translation regime (`StreamWorld`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Regime {
    El1,
    El2,
    El2Host,
}

impl Regime {
    /// `HasUnprivileged()`.
    pub(crate) fn has_unprivileged(self) -> bool {
        self != Self::El2
    }
}

/// What kind of access is checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub write: bool,
    pub instruction: bool,
    pub privileged: bool,
}

impl Access {
    /// The SMMU's own accesses to tables and CDs: privileged data.
    pub(crate) fn own(write: bool) -> Self {
        Self { write, instruction: false, privileged: true }
    }
}

#[derive(Clone, Copy)]
struct Rwx {
    r: bool,
    w: bool,
    x: bool,
}

impl Rwx {
    fn allow(self, access: Access) -> bool {
        if access.instruction {
            self.x
        } else if access.write {
            self.w
        } else {
            self.r
        }
    }
}

/// What the table descriptors of a stage 1 walk take away: APTable, UXNTable or XNTable, PXNTable.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Hierarchy {
    pub ap: u64,
    pub xn: bool,
    pub pxn: bool,
}

/// The controls that stage 1 permissions depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Controls {
    pub regime: Regime,
    pub wxn: bool,
    pub pan: bool,
    /// HA and HD: a descriptor with DBM counts as writable.
    pub dirty: bool,
}

/// Whether stage 1 allows an access through a leaf descriptor.
pub(crate) fn stage1_allows(
    descriptor: u64,
    hierarchy: Hierarchy,
    controls: Controls,
    access: Access,
) -> bool {
    let writable_clean = controls.dirty && bit(descriptor, 51);
    let ap2 = bit(descriptor, 7) && !writable_clean;
    let ap1 = bit(descriptor, 6);
    let (mut privileged, unprivileged);
    if controls.regime.has_unprivileged() {
        let (mut pr, mut pw, mut ur, mut uw) = match (ap2, ap1) {
            (false, false) => (true, true, false, false),
            (false, true) => (true, true, true, true),
            (true, false) => (true, false, false, false),
            (true, true) => (true, false, true, false),
        };
        match hierarchy.ap {
            0b00 => {}
            0b01 => (pr, pw, ur, uw) = (pr, pw, false, false),
            0b10 => (pr, pw, ur, uw) = (pr, false, ur, false),
            _ => (pr, pw, ur, uw) = (pr, false, false, false),
        }
        let px = !(bit(descriptor, 53) || hierarchy.pxn || uw);
        let ux = !(bit(descriptor, 54) || hierarchy.xn);
        if controls.pan && !access.instruction {
            let pan = ur || uw;
            pr = pr && !pan;
            pw = pw && !pan;
        }
        privileged = Rwx { r: pr, w: pw, x: px };
        unprivileged = Rwx { r: ur, w: uw, x: ux };
    } else {
        privileged = Rwx { r: true, w: !ap2, x: !(bit(descriptor, 54) || hierarchy.xn) };
        if hierarchy.ap & 0b10 != 0 {
            privileged.w = false;
        }
        unprivileged = privileged;
    }
    let mut allowed = if access.privileged { privileged } else { unprivileged };
    if controls.wxn && allowed.w {
        allowed.x = false;
    }
    allowed.allow(access)
}

/// Whether stage 2 allows an access through a leaf descriptor.
pub(crate) fn stage2_allows(descriptor: u64, dirty: bool, xnx: bool, access: Access) -> bool {
    let writable_clean = dirty && bit(descriptor, 51);
    let (px, ux) = match (bit(descriptor, 54), xnx && bit(descriptor, 53)) {
        (false, false) => (true, true),
        (false, true) => (false, true),
        (true, false) => (false, false),
        (true, true) => (true, false),
    };
    let allowed = Rwx {
        r: bit(descriptor, 6),
        w: bit(descriptor, 7) || writable_clean,
        x: if access.privileged { px } else { ux },
    };
    allowed.allow(access)
}
