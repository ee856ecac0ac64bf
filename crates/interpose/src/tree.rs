//! A directory of real files that programs find at other paths: what `/sys` and `/dev` say of the machine.
//!
//! Real files, because a program may do with a directory what it likes: list it, follow links in it, open what is below
//! it by a descriptor. The directory is in memory where the system has a place for that, and is removed when the
//! process ends; what a killed process leaves behind is removed by the next one that makes a tree.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use host_linux::PrivateFd;
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};

/// See the module.
pub struct Tree {
    root: PathBuf,
    process: u32,
    /// Locked for as long as somebody may look: this process, and those forked from it.
    _lock: PrivateFd,
}

impl Tree {
    /// An empty tree.
    pub fn new() -> io::Result<Self> {
        let places = [std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)];
        let places = places.into_iter().flatten().filter(|place| place.is_absolute());
        let places = places.chain(["/dev/shm".into(), std::env::temp_dir()]);
        let mut result = Err(io::ErrorKind::NotFound.into());
        for place in places {
            result = Self::below(&place);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn below(place: &Path) -> io::Result<Self> {
        let user = rustix::process::geteuid().as_raw();
        let all = place.join(format!("softiommu-{user}"));
        let directory = |path: &Path| DirBuilder::new().mode(0o700).create(path);
        match directory(&all) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Others may write to the place: it must be ours, and no link to something else.
        let found = fs::symlink_metadata(&all)?;
        if !found.is_dir() || found.uid() != user {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let everybody = File::open(&all)?;
        flock(&everybody, FlockOperation::LockExclusive)?;
        remove_abandoned(&all);
        let process = std::process::id();
        let mut root = all.join(process.to_string());
        // Processes of other PID namespaces may be here, too.
        for n in 1_u32.. {
            match directory(&root) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    root.set_file_name(format!("{process}-{n}"));
                }
                result => {
                    result?;
                    break;
                }
            }
        }
        let lock = File::open(&root)?;
        flock(&lock, FlockOperation::LockExclusive)?;
        // Out of the way of programs that close what they do not know.
        let lock = PrivateFd::new(lock.into())?;
        Ok(Self { root, process, _lock: lock })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where an absolute path of programs is in it.
    fn place(&self, path: &str) -> io::Result<PathBuf> {
        let place = self.root.join(path.trim_start_matches('/'));
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(place)
    }

    /// Puts a file at an absolute path, and the directories above it.
    pub fn file(&self, path: &str, content: impl AsRef<[u8]>) -> io::Result<()> {
        fs::write(self.place(path)?, content)
    }

    /// Puts a directory there.
    pub fn directory(&self, path: &str) -> io::Result<()> {
        fs::create_dir_all(self.place(path)?)
    }

    /// Puts a symbolic link there.
    pub fn link(&self, path: &str, target: impl AsRef<Path>) -> io::Result<()> {
        symlink(target, self.place(path)?)
    }

    /// Changes what a file has. Who reads it meanwhile finds the old or the new, and never nothing.
    pub fn rewrite(&self, path: &str, content: impl AsRef<[u8]>) -> io::Result<()> {
        let content = content.as_ref();
        let file = File::options().write(true).open(self.place(path)?)?;
        file.write_all_at(content, 0)?;
        file.set_len(content.len() as u64)
    }

    /// Takes away a file or a link, and the directories above it that have nothing else.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        let place = self.root.join(path.trim_start_matches('/'));
        fs::remove_file(&place)?;
        let above = place.ancestors().skip(1).take_while(|directory| **directory != self.root);
        // The first that has something else refuses.
        let _ = above.map(fs::remove_dir).find(Result::is_err);
        Ok(())
    }

    /// Puts links there to what the system's own directory of that name has, unless there is something of that name.
    pub fn show_also(&self, directory: &str) -> io::Result<()> {
        self.directory(directory)?;
        let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
        for entry in entries.flatten() {
            let place = self.place(directory)?.join(entry.file_name());
            match symlink(entry.path(), place) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Has it removed when this process ends, whoever else holds it.
    pub fn remove_at_exit(&self) {
        static ROOTS: Mutex<Vec<(u32, PathBuf)>> = Mutex::new(Vec::new());
        extern "C" fn remove() {
            for (process, root) in ROOTS.lock().drain(..) {
                // Not in a child that was forked.
                if process == std::process::id() {
                    let _ = fs::remove_dir_all(root);
                }
            }
        }
        let mut roots = ROOTS.lock();
        if roots.is_empty() {
            // SAFETY: the function may be called at any time, and never unwinds.
            unsafe { libc::atexit(remove) };
        }
        roots.push((self.process, self.root.clone()));
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

/// Removes trees that nobody has locked. With the lock of `all`, so that nobody is just about to.
fn remove_abandoned(all: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(tree) = File::open(&path) else { continue };
        if flock(&tree, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_dir_all(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_there_until_it_is_dropped_or_abandoned() {
        let place = tempfile::tempdir().unwrap();
        let tree = Tree::below(place.path()).unwrap();
        tree.file("/sys/a/b", "text").unwrap();
        tree.link("/sys/c", "a/b").unwrap();
        let root = tree.root().to_owned();
        assert_eq!(fs::read(root.join("sys/c")).unwrap(), b"text");
        let killed = root.with_file_name("killed");
        fs::create_dir_all(killed.join("sys")).unwrap();
        let other = Tree::below(place.path()).unwrap();
        assert!(!killed.exists(), "nobody is there to want it");
        assert!(root.exists() && other.root() != root);
        drop(tree);
        assert!(!root.exists() && other.root().exists());
    }

    #[test]
    fn files_change_and_go_with_their_directories() {
        let place = tempfile::tempdir().unwrap();
        let tree = Tree::below(place.path()).unwrap();
        tree.file("/sys/a/b/c", "long text").unwrap();
        tree.file("/sys/a/d", "").unwrap();
        tree.rewrite("/sys/a/b/c", "text").unwrap();
        assert_eq!(fs::read(tree.root().join("sys/a/b/c")).unwrap(), b"text");
        tree.remove("/sys/a/b/c").unwrap();
        assert!(!tree.root().join("sys/a/b").exists() && tree.root().join("sys/a/d").exists());
        assert!(tree.remove("/sys/a/b/c").is_err() && tree.rewrite("/sys/a/e", "").is_err());
        tree.remove("/sys/a/d").unwrap();
        assert!(!tree.root().join("sys").exists() && tree.root().exists());
    }

    #[test]
    fn what_the_system_has_is_shown_also() {
        let place = tempfile::tempdir().unwrap();
        let tree = Tree::below(place.path()).unwrap();
        tree.file("/proc/self/status", "ours").unwrap();
        tree.show_also("/proc/self").unwrap();
        let read = |path| fs::read(tree.root().join(path)).unwrap();
        assert_eq!(read("proc/self/status"), b"ours");
        assert_eq!(read("proc/self/comm"), fs::read("/proc/self/comm").unwrap());
        tree.show_also("/no/such/directory").unwrap();
        assert!(tree.root().join("no/such/directory").is_dir());
    }

    #[test]
    fn a_place_that_is_somebody_else_s_is_not_used() {
        let place = tempfile::tempdir().unwrap();
        let user = rustix::process::geteuid().as_raw();
        let elsewhere = place.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, place.path().join(format!("softiommu-{user}"))).unwrap();
        assert!(Tree::below(place.path()).is_err());
        assert_eq!(fs::read_dir(elsewhere).unwrap().count(), 0);
    }
}
