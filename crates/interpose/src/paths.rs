//! Which paths are ours: the one table of path redirection.
#![forbid(unsafe_code)]

use std::any::Any;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use host::{CharDevice, Errno};

use crate::tree::Tree;

/// Changes the content of a file.
pub type Patch = Arc<dyn Fn(&Captures, Vec<u8>) -> Vec<u8> + Send + Sync>;
/// Makes the content of a file, if there is one.
pub type Generate = Arc<dyn Fn(&Captures) -> Option<Vec<u8>> + Send + Sync>;

/// Takes what one `write` has.
pub type Store = Arc<dyn Fn(&[u8]) -> Result<(), Errno> + Send + Sync>;

/// What is behind a path of ours.
#[derive(Clone)]
pub enum Node {
    /// A device that can be opened.
    CharDevice(Arc<dyn CharDevice>),
    /// The kernel's own file with its content changed.
    Patched(Patch),
    /// A read-only file that the kernel does not have. `None`: no such file.
    Text(Generate),
    /// A file of an overlay that programs may write, as those in `/sys`; who reads it reads the file of the tree. Links
    /// in the tree that lead to it lead here, too.
    Attribute(Store),
}

/// What the placeholders of a pattern stood for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captures(Vec<(String, String)>);

impl Captures {
    /// What `{name}` stood for.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| &**value)
    }

    /// What `{pid}` stood for. `self` has become a number before.
    pub fn pid(&self) -> Option<u32> {
        self.get("pid")?.parse().ok()
    }
}

/// The table of paths that lead to us instead of to the kernel.
///
/// Paths are absolute. A segment in braces stands for any one segment;
/// `{pid}` only for a number, and the kernel's `self` matches it.
#[derive(Clone, Default)]
pub struct PathTable {
    entries: Vec<(String, Node)>,
    overlays: Vec<(Arc<Tree>, Vec<String>)>,
    kept: Vec<Arc<dyn Any + Send + Sync>>,
}

impl PathTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `node` at `pattern`, before whatever was added later.
    pub fn add(&mut self, pattern: impl Into<String>, node: Node) -> &mut Self {
        self.entries.push((pattern.into(), node));
        self
    }

    /// Keeps something that nodes need for as long as the table lives.
    pub fn keep(&mut self, what: Arc<dyn Any + Send + Sync>) -> &mut Self {
        self.kept.push(what);
        self
    }

    /// Has paths that are one of `paths`, or below one, looked up in `tree`, unless a node is there. Those have to begin
    /// like one of the [`Prefixes`].
    pub fn overlay(
        &mut self,
        tree: Arc<Tree>,
        paths: impl IntoIterator<Item = String>,
    ) -> &mut Self {
        self.overlays.push((tree, paths.into_iter().collect()));
        self
    }

    /// Where `path` is looked up instead.
    pub(crate) fn overlaid(&self, path: &str) -> Option<CString> {
        let below = |prefix: &String| {
            path.strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let (tree, _) = self.overlays.iter().find(|(_, paths)| paths.iter().any(below))?;
        let mut place = tree.root().as_os_str().as_bytes().to_owned();
        place.extend(path.as_bytes());
        CString::new(place).ok()
    }

    /// `path` without the links that a tree has on the way.
    pub(crate) fn resolved(&self, path: &str) -> Option<String> {
        let place = self.overlaid(path)?;
        let real = std::fs::canonicalize(OsStr::from_bytes(place.as_bytes())).ok()?;
        Some(std::str::from_utf8(self.shown(real.as_os_str().as_bytes())?).ok()?.to_owned())
    }

    /// The path by which programs know what is at `path` in a tree.
    pub(crate) fn shown<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let roots = self.overlays.iter().map(|(tree, _)| tree.root().as_os_str().as_bytes());
        roots.into_iter().find_map(|root| path.strip_prefix(root))
    }

    /// What `path` leads to.
    pub fn find(&self, path: &str) -> Option<(&Node, Captures)> {
        self.entries.iter().find_map(|(pattern, node)| Some((node, matches(pattern, path)?)))
    }
}

fn matches(pattern: &str, path: &str) -> Option<Captures> {
    let mut captures = Captures::default();
    let mut parts = path.split('/');
    for wanted in pattern.split('/') {
        let part = parts.next()?;
        match wanted.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            Some(_) if part.is_empty() => return None,
            Some("pid") if !part.bytes().all(|b| b.is_ascii_digit()) => return None,
            Some(name) => captures.0.push((name.into(), part.into())),
            None if wanted != part => return None,
            None => {}
        }
    }
    parts.next().is_none().then_some(captures)
}

/// Which paths the table may know, told before it is built.
#[derive(Debug, Clone, Copy)]
pub struct Prefixes {
    /// A path that begins so builds the table.
    pub build: &'static [&'static str],
    /// A path that begins so is looked up if the table has been built: there is
    /// nothing to tell of a machine that does not exist.
    pub if_built: &'static [&'static str],
    /// A relative path that begins so is looked up in the directory that
    /// `openat` is given.
    pub relative: &'static [&'static str],
}

/// Whether `path` begins like one of `prefixes`.
pub(crate) fn begins_like(path: &[u8], prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| path.starts_with(prefix.as_bytes()))
}

/// `path` with `/proc/self` and `/proc/thread-self` spelt out.
pub(crate) fn spell_out_self(path: &str, pid: u32, tid: impl FnOnce() -> u32) -> String {
    let rest = |prefix| path.strip_prefix(prefix).filter(|rest: &&str| rest.starts_with('/'));
    if let Some(rest) = rest("/proc/self") {
        format!("/proc/{pid}{rest}")
    } else if let Some(rest) = rest("/proc/thread-self") {
        format!("/proc/{pid}/task/{}{rest}", tid())
    } else {
        path.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(answer: &'static str) -> Node {
        Node::Text(Arc::new(move |_| Some(answer.into())))
    }

    fn find(table: &PathTable, path: &str) -> Option<(Vec<u8>, Captures)> {
        let (node, captures) = table.find(path)?;
        let Node::Text(content) = node else { panic!("only text here") };
        Some((content(&captures)?, captures))
    }

    #[test]
    fn placeholders_match_one_segment() {
        let mut table = PathTable::new();
        table.add("/proc/{pid}/status", text("status")).add("/dev/x/{name}", text("x"));
        let (content, captures) = find(&table, "/proc/42/status").unwrap();
        assert_eq!((content.as_slice(), captures.pid()), (b"status".as_slice(), Some(42)));
        assert_eq!(find(&table, "/dev/x/y").unwrap().1.get("name"), Some("y"));
        for other in
            ["/proc/sys/status", "/proc/42/status/", "/proc/42", "/dev/x/", "/dev/x/y/z", "", "/"]
        {
            assert!(find(&table, other).is_none(), "{other}");
        }
    }

    #[test]
    fn the_first_entry_wins() {
        let mut table = PathTable::new();
        table.add("/a/b", text("exact")).add("/a/{any}", text("pattern"));
        assert_eq!(find(&table, "/a/b").unwrap().0, b"exact");
        assert_eq!(find(&table, "/a/c").unwrap().0, b"pattern");
    }

    #[test]
    fn self_is_a_number() {
        assert_eq!(spell_out_self("/proc/self/status", 7, || 8), "/proc/7/status");
        assert_eq!(spell_out_self("/proc/thread-self/status", 7, || 8), "/proc/7/task/8/status");
        assert_eq!(spell_out_self("/proc/selfish", 7, || 8), "/proc/selfish");
    }
}
