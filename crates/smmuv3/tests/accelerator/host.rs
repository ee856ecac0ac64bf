//! The other side, recorded.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use smmuv3::{Accelerator, PageResponse, Refusal, StreamConfig};

/// What the accelerator was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Install(u32, StreamConfig),
    Invalidate(Vec<[u64; 2]>),
    Response(PageResponse),
}

type During = Box<dyn FnOnce() + Send>;

/// Does nothing, well or badly.
#[derive(Default)]
pub(crate) struct Host {
    calls: Mutex<Vec<Call>>,
    results: Mutex<VecDeque<Result<(), Refusal>>>,
    during: Mutex<Option<During>>,
    fails_to_install: AtomicBool,
    busy: AtomicBool,
}

impl Host {
    /// The calls since the last time.
    pub(crate) fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// The one call since the last time, an invalidation.
    #[track_caller]
    pub(crate) fn batch(&self) -> Vec<[u64; 2]> {
        match &self.take()[..] {
            [Call::Invalidate(commands)] => commands.clone(),
            calls => panic!("not one batch: {calls:x?}"),
        }
    }

    /// The result of the next invalidation that has none yet.
    pub(crate) fn refuse(&self, refusal: Refusal) {
        self.results.lock().unwrap().push_back(Err(refusal));
    }

    /// Refuses nothing from now on.
    pub(crate) fn forgive(&self) {
        self.results.lock().unwrap().clear();
    }

    pub(crate) fn fail_to_install(&self, fails: bool) {
        self.fails_to_install.store(fails, Ordering::Release);
    }

    /// Runs `action` in the midst of the next call.
    pub(crate) fn during(&self, action: impl FnOnce() + Send + 'static) {
        *self.during.lock().unwrap() = Some(Box::new(action));
    }

    fn call(&self, call: Call) {
        assert!(!self.busy.swap(true, Ordering::AcqRel), "one call at a time");
        self.calls.lock().unwrap().push(call);
        let during = self.during.lock().unwrap().take();
        if let Some(action) = during {
            action();
        }
        self.busy.store(false, Ordering::Release);
    }
}

impl Accelerator for Host {
    fn install(&self, stream_id: u32, config: StreamConfig) -> bool {
        self.call(Call::Install(stream_id, config));
        !self.fails_to_install.load(Ordering::Acquire)
    }

    fn invalidate(&self, commands: &[[u64; 2]]) -> Result<(), Refusal> {
        self.call(Call::Invalidate(commands.to_vec()));
        self.results.lock().unwrap().pop_front().unwrap_or(Ok(()))
    }

    fn page_response(&self, response: PageResponse) {
        self.call(Call::Response(response));
    }
}
