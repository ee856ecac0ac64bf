//! STEs and CDs that change under the eyes of the hardware (IHI 0070 §3.21).
//!
//! An entry has eight words. The SMMU reads each at once, but all of them in any order and at any time, and may
//! remember what it read until it is told to forget. So a change is a row of images: software writes the words in
//! which an image differs from the one before, and tells the SMMU before it goes on. The SMMU may then see any mix
//! of the words of two neighbours, and [`plan`] makes them so that each mix means what the old entry means, or the
//! new one, or an abort.

use std::sync::atomic::{AtomicU64, Ordering};

use smmuv3::wire::{Cd, Ste};

/// The words of an entry.
pub(crate) type Words = [u64; 8];

/// An STE or a CD.
pub(crate) trait Entry: Copy {
    fn words(&self) -> Words;

    /// The bits that mean something in this entry. None of those outside has a say in which these are.
    fn in_use(&self) -> Words;

    /// An entry that aborts. It differs in word 0 only, and uses no other.
    fn aborting(&self) -> Self;
}

impl Entry for Ste {
    fn words(&self) -> Words {
        self.0
    }

    fn in_use(&self) -> Words {
        let all = Ste([!0; 8]);
        let mut used = Ste::default().with_v(true);
        if !self.v() {
            return used.0;
        }
        used = used.with_config(all.config());
        let (stage1, stage2) = match self.config() {
            0b100 => (false, false),
            0b101 => (true, false),
            0b110 => (false, true),
            0b111 => (true, true),
            _ => return used.0,
        };
        // What has a meaning without any stage is all else in word 1, and what follows word 3.
        used.0[1] = all.with_sw_reserved(0).0[1];
        used.0[4..].fill(!0);
        let substreams = stage1 && self.s1_cd_max() != 0;
        if stage1 {
            used = used.with_s1_context_ptr(all.s1_context_ptr()).with_s1_cd_max(all.s1_cd_max());
            used = used.with_s2_vmid(all.s2_vmid());
        } else {
            used = used.with_s1_cir(0).with_s1_cor(0).with_s1_csh(0).with_s1_pie(false);
            used = used.with_s1_mpam(false).with_s1_stalld(false).with_strw(0);
        }
        if substreams {
            used = used.with_s1_fmt(all.s1_fmt());
        } else {
            used = used.with_s1_dss(0);
        }
        if stage2 {
            used.0[2] = !0;
            used.0[3] = !0;
        } else {
            used = used.with_s2_hwu59(false).with_s2_hwu60(false).with_s2_hwu61(false);
            used = used.with_s2_hwu62(false).with_s2_fwb(false);
        }
        if !stage1 && !stage2 {
            used = used.with_eats(0);
        }
        used.0
    }

    fn aborting(&self) -> Self {
        // Valid: abort is what is meant, and nothing to report.
        let mut words = self.0;
        words[0] = Ste::default().with_v(true).0[0];
        Ste(words)
    }
}

impl Entry for Cd {
    fn words(&self) -> Words {
        self.0
    }

    fn in_use(&self) -> Words {
        if !self.v() {
            return Cd::default().with_v(true).0;
        }
        let mut used = Cd([!0; 8]);
        if self.epd0() {
            used = used.with_t0sz(0).with_tg0(0).with_ir0(0).with_or0(0).with_sh0(0).with_ttb0(0);
        }
        if self.epd1() {
            used = used.with_t1sz(0).with_tg1(0).with_ir1(0).with_or1(0).with_sh1(0).with_ttb1(0);
        }
        used.0
    }

    fn aborting(&self) -> Self {
        self.with_v(false)
    }
}

/// Whether no transaction notices the change from `old` to `new` but as a change from the one to the other.
pub(crate) fn is_hitless<E: Entry>(old: E, new: E) -> bool {
    hitless(old, new).is_some()
}

/// The images on the way from `old` to `new`, which is the last.
pub(crate) fn plan<E: Entry>(old: E, new: E) -> Vec<Words> {
    if let Some(images) = hitless(old, new) {
        return images.into();
    }
    let between = old.aborting();
    [hitless(old, between), hitless(between, new)].into_iter().flatten().flatten().collect()
}

/// The images of a change that no transaction notices. It takes one write to switch from the meaning of the old
/// entry to that of the new: what else the new one needs is written before, where the old one has no use for it,
/// and what only the old one needs is cleared after. `None` if one word does not do it.
fn hitless<E: Entry>(old: E, new: E) -> Option<[Words; 3]> {
    let (was, will) = (old.in_use(), new.in_use());
    let (old, new) = (old.words(), new.words());
    // The old entry with all of the new one that fits in.
    let mut prepared: Words = std::array::from_fn(|n| old[n] & was[n] | new[n] & will[n] & !was[n]);
    let mut differing = (0..8).filter(|&n| (prepared[n] ^ new[n]) & will[n] != 0);
    let switch = differing.next();
    if differing.next().is_some() {
        return None;
    }
    let mut switched = prepared;
    if let Some(n) = switch {
        prepared[n] = old[n];
        switched[n] = new[n];
    }
    Some([prepared, switched, new])
}

/// Changes the entry at `place` into `new`. `forget` has the SMMU forget what it knows of the entry, and returns
/// once no transaction uses that any more; if it fails, the entry is left as an image on the way, whose meaning is
/// the old one's, the new one's or an abort.
pub(crate) fn write<E: Entry, Error>(
    place: &[AtomicU64; 8],
    old: E,
    new: E,
    mut forget: impl FnMut() -> Result<(), Error>,
) -> Result<(), Error> {
    for image in plan(old, new) {
        let mut changed = false;
        for (word, value) in place.iter().zip(image) {
            if word.load(Ordering::Relaxed) != value.to_le() {
                word.store(value.to_le(), Ordering::Release);
                changed = true;
            }
        }
        if changed {
            forget()?;
        }
    }
    Ok(())
}

/// What the entry at `place` is now.
pub(crate) fn read(place: &[AtomicU64; 8]) -> Words {
    std::array::from_fn(|n| u64::from_le(place[n].load(Ordering::Relaxed)))
}

#[cfg(test)]
mod tests;
