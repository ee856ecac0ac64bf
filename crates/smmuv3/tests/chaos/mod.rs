//! Random worlds for the two SMMUs: memory full of plausible structures, and what drives both.
//!
//! * [`dice`]: reproducible randomness.
//! * [`plan`]: what one world is like, and the content of its memory, word by word.
//! * [`ram`]: the memory itself: the plan's words, what was written over them, holes, queues.
//! * [`rig`]: the model under test, driven through registers, queues and transactions.
//! * [`live`]: software changes its tables and invalidates no more than it must.
//! * [`duel`]: both SMMUs on the same transactions.
//! * [`verdict`]: the comparison.

pub(crate) mod dice;
pub(crate) mod duel;
pub(crate) mod live;
pub(crate) mod plan;
pub(crate) mod ram;
pub(crate) mod rig;
pub(crate) mod verdict;
