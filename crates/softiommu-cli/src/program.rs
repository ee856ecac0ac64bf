//! Whether the library can get into a program, found out before it starts.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use object::elf::{
    EM_386, EM_AARCH64, EM_ARM, EM_RISCV, EM_X86_64, ET_DYN, ET_EXEC, FileHeader32, FileHeader64,
    FileType, Machine, PT_INTERP,
};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, FileKind};

/// Why a program cannot be run with our library in it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    #[error("no program was given")]
    Missing,
    #[error("{}: program not found{}", name.to_string_lossy(), hint(name))]
    NotFound { name: OsString },
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: permission denied: the file is not executable", path.display())]
    NotExecutable { path: PathBuf },
    #[error(
        "{}: this executable is statically linked, so there is no dynamic loader that could put \
         the library into it; link it dynamically against the C library",
        path.display()
    )]
    Static { path: PathBuf },
    #[error(
        "{}: this executable is for {found}, and the library is for {}: the loader would not \
         accept it; use a softiommu built for {found}",
        path.display(),
        std::env::consts::ARCH
    )]
    Architecture { path: PathBuf, found: String },
    #[error(
        "{}: this program is {kind}: for such programs the loader ignores LD_PRELOAD, so that \
         nobody can take over their privileges. Copy it without the {kind} mark, or run it \
         as the user it would become",
        path.display()
    )]
    Privileged { path: PathBuf, kind: &'static str },
    #[error("{}: this is neither an ELF executable nor a script", path.display())]
    Unknown { path: PathBuf },
    #[error("{}: scripts whose interpreters are scripts go too deep", path.display())]
    TooDeep { path: PathBuf },
}

fn hint(name: &OsStr) -> &'static str {
    if name.as_bytes().contains(&b'/') {
        ""
    } else {
        " in PATH; for a file here write ./ before it"
    }
}

/// The file that `execvp` would start.
pub(crate) fn find(name: &OsStr) -> Result<PathBuf, ProgramError> {
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return if path.is_file() { Ok(path) } else { Err(not_found(name)) };
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let files = std::env::split_paths(&path).map(|dir| dir.join(name));
    let mut files = files.filter(|file| file.is_file());
    files.find(|file| is_executable(file)).ok_or_else(|| not_found(name))
}

fn not_found(name: &OsStr) -> ProgramError {
    ProgramError::NotFound { name: name.to_owned() }
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0)
}

/// Checks a program, and the interpreter of a script.
pub(crate) fn check(path: &Path) -> Result<(), ProgramError> {
    let mut path = path.to_owned();
    // As deep as the kernel goes.
    for _ in 0..5 {
        if !is_executable(&path) {
            return Err(ProgramError::NotExecutable { path });
        }
        check_privileges(&path)?;
        let read = |source| ProgramError::Read { path: path.clone(), source };
        let mut head = Vec::new();
        std::fs::File::open(&path)
            .and_then(|file| file.take(64 << 10).read_to_end(&mut head))
            .map_err(read)?;
        let Some(script) = head.strip_prefix(b"#!") else { return check_elf(&path, &head) };
        let line = script.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let words = line.split(u8::is_ascii_whitespace);
        let interpreter = words.into_iter().find(|word| !word.is_empty()).unwrap_or_default();
        let interpreter = OsString::from_vec(interpreter.to_vec());
        path = PathBuf::from(&interpreter);
        if !path.is_file() {
            return Err(not_found(&interpreter));
        }
    }
    Err(ProgramError::TooDeep { path })
}

fn check_privileges(path: &Path) -> Result<(), ProgramError> {
    let Ok(meta) = std::fs::metadata(path) else { return Ok(()) };
    let mode = meta.permissions().mode();
    let capabilities = || {
        let mut value = [0; 64];
        rustix::fs::getxattr(path, "security.capability", &mut value).is_ok_and(|len| len > 0)
    };
    // The loader's secure mode comes with a change of identity, not the mark.
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let kind = if mode & 0o4000 != 0 && meta.uid() != uid.as_raw() {
        "set-user-ID"
    } else if mode & 0o2010 == 0o2010 && meta.gid() != gid.as_raw() {
        "set-group-ID"
    } else if !uid.is_root() && capabilities() {
        "file-capability"
    } else {
        return Ok(());
    };
    Err(ProgramError::Privileged { path: path.to_owned(), kind })
}

fn check_elf(path: &Path, head: &[u8]) -> Result<(), ProgramError> {
    let unknown = || ProgramError::Unknown { path: path.to_owned() };
    let (machine, kind, interpreted) = match FileKind::parse(head) {
        Ok(FileKind::Elf64) => elf::<FileHeader64<Endianness>>(head),
        Ok(FileKind::Elf32) => elf::<FileHeader32<Endianness>>(head),
        _ => None,
    }
    .ok_or_else(unknown)?;
    let bits = if head.get(4) == Some(&2) { 64 } else { 32 };
    let ours = match std::env::consts::ARCH {
        "x86_64" => EM_X86_64,
        "aarch64" => EM_AARCH64,
        _ => machine,
    };
    if machine != ours || bits != usize::BITS {
        return Err(ProgramError::Architecture {
            path: path.to_owned(),
            found: architecture(machine, bits),
        });
    }
    if kind != ET_EXEC && kind != ET_DYN {
        return Err(unknown());
    }
    if interpreted { Ok(()) } else { Err(ProgramError::Static { path: path.to_owned() }) }
}

/// The machine, the type, and whether a dynamic loader starts the program.
fn elf<H: FileHeader<Endian = Endianness>>(head: &[u8]) -> Option<(Machine, FileType, bool)> {
    let header = H::parse(head).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, head).ok()?;
    let interpreted = segments.iter().any(|segment| segment.p_type(endian) == PT_INTERP);
    Some((header.e_machine(endian), header.e_type(endian), interpreted))
}

fn architecture(machine: Machine, bits: u32) -> String {
    match machine {
        EM_X86_64 if bits == 32 => "x32".to_owned(),
        EM_X86_64 => "x86_64".to_owned(),
        EM_386 => "i386".to_owned(),
        EM_AARCH64 => "aarch64".to_owned(),
        EM_ARM => "arm".to_owned(),
        EM_RISCV => format!("riscv{bits}"),
        other => format!("the machine with ELF number {}", other.0),
    }
}
