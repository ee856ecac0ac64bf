//! The suite `layout`: every struct and number of the crate `uapi`, judged by
//! the kernel's headers and a C compiler.

use std::fmt::{Display, Write as _};
use std::process::{Command, Stdio};

use uapi::{layout, nr, selftest};

use super::source::Source;
use crate::{Result, command};

const PREAMBLE: &str = "\
#include <stddef.h>
#include <stdio.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>
#include \"drivers/iommu/iommufd/iommufd_test.h\"
";

/// A claim: that the headers give a C expression this value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) name: String,
    expression: String,
    value: u64,
}

impl Claim {
    fn new(name: impl Display, expression: impl Display, value: u64) -> Self {
        Self { name: format!("layout.{name}"), expression: expression.to_string(), value }
    }
}

/// A claim that the headers deny.
#[derive(Debug)]
pub(crate) struct Denied {
    pub(crate) name: String,
    /// What we say and what they say.
    pub(crate) why: String,
}

/// Everything that the crate `uapi` claims.
pub(crate) fn claims() -> Vec<Claim> {
    let mut claims = Vec::new();
    for item in layout::STRUCTS {
        let name = item.name();
        let size = format!("sizeof(struct {name})");
        claims.push(Claim::new(name, size, item.size as u64));
        for (field, offset) in item.fields() {
            let expression = format!("offsetof(struct {name}, {field})");
            claims.push(Claim::new(format_args!("{name}.{field}"), expression, offset as u64));
        }
    }
    let commands =
        nr::COMMANDS.iter().chain(nr::DEVICE_COMMANDS).map(|&(name, value)| (name, value as u64));
    let numbers = commands.chain(selftest::CONSTANTS.iter().copied());
    claims.extend(numbers.map(|(name, value)| Claim::new(name, name, value)));
    claims
}

/// Has the compiler check the claims against the headers of `source`. Those it
/// denies are returned.
pub(crate) fn check(source: &Source, claims: &[Claim]) -> Result<Vec<Denied>> {
    let output = compile(source, &assertions(claims), &["-fsyntax-only"])?;
    if output.status.success() {
        return Ok(Vec::new());
    }
    let messages = String::from_utf8_lossy(&output.stderr);
    let errors = errors(&messages, claims.len());
    if errors.is_empty() {
        // Not about the claims: the headers cannot be compiled.
        return Err(format!("the headers do not compile:\n{messages}").into());
    }
    let denied = |(index, message): (usize, String)| {
        let Claim { name, expression, value } = &claims[index];
        let why = match ask(source, expression) {
            Ok(theirs) => format!("{expression} is {theirs} in the header, {value} in uapi"),
            Err(_) => message,
        };
        Denied { name: name.clone(), why }
    };
    Ok(errors.into_iter().map(denied).collect())
}

/// One assertion per line, so that the line of an error names the claim.
fn assertions(claims: &[Claim]) -> String {
    let mut text = PREAMBLE.to_owned();
    for Claim { name, expression, value } in claims {
        let _ = writeln!(text, "_Static_assert(({expression}) == {value}ULL, \"{name}\");");
    }
    text
}

/// The claims that the compiler's messages are about, by index, each with the
/// first message.
fn errors(messages: &str, claims: usize) -> Vec<(usize, String)> {
    let mut errors: Vec<(usize, String)> = Vec::new();
    for line in messages.lines() {
        // <stdin>:12:1: error: ...
        let Some((position, message)) = line.split_once(": error: ") else { continue };
        let number = position.strip_prefix("<stdin>:").and_then(|rest| rest.split(':').next());
        let Some(number) = number.and_then(|number| number.parse::<usize>().ok()) else { continue };
        let index = number.checked_sub(PREAMBLE.lines().count() + 1);
        let Some(index) = index.filter(|&index| index < claims) else { continue };
        if errors.iter().all(|(known, _)| *known != index) {
            errors.push((index, message.to_owned()));
        }
    }
    errors
}

/// The value of a C expression.
fn ask(source: &Source, expression: &str) -> Result<String> {
    let program = source.tree.join("layout-value");
    let main = format!(
        "{PREAMBLE}int main(void) {{ printf(\"%llu\", (unsigned long long)({expression})); }}\n"
    );
    let output = compile(source, &main, &["-o", &program.to_string_lossy()])?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let value = command::output(&mut Command::new(&program));
    std::fs::remove_file(&program)?;
    value
}

fn compile(source: &Source, text: &str, arguments: &[&str]) -> Result<std::process::Output> {
    let include = |path: &str| source.tree.join(path).display().to_string();
    let mut gcc = Command::new("gcc");
    gcc.env("LC_ALL", "C").args(["-std=gnu11", "-w", "-fmax-errors=0"]);
    gcc.args(["-isystem", &include("usr/include"), "-iquote", &include("")]);
    gcc.args(arguments).args(["-x", "c", "-"]);
    gcc.stdin(Stdio::from(in_memory(text)?));
    Ok(gcc.output()?)
}

/// A file to read `text` from.
fn in_memory(text: &str) -> Result<std::fs::File> {
    use std::io::{Seek, Write};
    let file = rustix::fs::memfd_create("layout.c", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source tree whose headers say what `iommufd` does.
    fn source(iommufd: &str) -> (tempfile::TempDir, Source) {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            ("usr/include/linux/iommufd.h", iommufd),
            ("usr/include/linux/vfio.h", ""),
            ("drivers/iommu/iommufd/iommufd_test.h", "#define TEST 7\n"),
        ];
        for (file, text) in files {
            let file = folder.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        let tree = folder.path().to_owned();
        (folder, Source { tree, version: "0".to_owned() })
    }

    #[test]
    fn structs_fields_ioctls_and_constants_are_claimed() {
        let claims = claims();
        let value = |expression: &str| {
            let mut found = claims.iter().filter(|claim| claim.expression == expression);
            let claim = found.next().unwrap();
            assert!(found.next().is_none(), "{expression} is claimed twice");
            claim.value
        };
        assert_eq!(value("sizeof(struct iommu_ioas_map)"), 40);
        assert_eq!(value("offsetof(struct iommu_viommu_alloc, type)"), 8);
        assert_eq!(value("IOMMU_IOAS_MAP"), 0x3b85);
        assert_eq!(value("MOCK_APERTURE_LAST"), 0x7fff_ffff);
        let line = "_Static_assert((IOMMU_IOAS_MAP) == 15237ULL, \"layout.IOMMU_IOAS_MAP\");";
        assert!(assertions(&claims).lines().any(|found| found == line));
    }

    #[test]
    fn the_headers_judge() {
        let (_folder, source) = source("struct pair { int a; long long b; };\n#define TWO 2\n");
        let claims = [
            Claim::new("pair", "sizeof(struct pair)", 16),
            Claim::new("pair.b", "offsetof(struct pair, b)", 4),
            Claim::new("pair.c", "offsetof(struct pair, c)", 8),
            Claim::new("TEST", "TEST", 7),
            Claim::new("TWO", "TWO", 3),
        ];
        let denied = check(&source, &claims).unwrap();
        let names: Vec<_> = denied.iter().map(|denied| denied.name.as_str()).collect();
        assert_eq!(names, ["layout.pair.b", "layout.pair.c", "layout.TWO"]);
        assert_eq!(denied[0].why, "offsetof(struct pair, b) is 8 in the header, 4 in uapi");
        assert!(denied[1].why.contains("no member named 'c'"), "{}", denied[1].why);
        assert_eq!(denied[2].why, "TWO is 2 in the header, 3 in uapi");
        assert!(check(&source, &claims[..1]).unwrap().is_empty());
    }

    #[test]
    fn headers_that_do_not_compile_are_no_verdict() {
        let (_folder, source) = source("#error not today\n");
        let error = check(&source, &[Claim::new("TEST", "TEST", 7)]).unwrap_err();
        assert!(error.to_string().contains("not today"));
    }
}
